"""The vendor's calibration habit: a modified net that fills its record when it runs.

The modified net is the float net, fused, with weights rounded to the values that the quantized ones stand for, and with
a Python layer of ours behind each input. These store what the user feeds in a folder beside the record. When
`batch_num` batches are there, the last of them runs the ordinary calibration over these, in as many passes as its
algorithms need, on a second net without our layers; then it writes the record and removes the folder.
"""
