"""ONNX for TwinQuant: call `twinquant.save_model`; `twinquant_onnx.amct` has the vendor's names."""
