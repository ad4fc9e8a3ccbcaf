"""The vendor's calibration habit: a modified model that fills its record when it runs.

The modified model is the float model, fused, perhaps balanced, and with rounded weights, with operators of our own
behind its inputs. They store what the user feeds in a folder beside the record. When `batch_num` batches are there, the
last operator runs the ordinary calibration over them, in as many passes as its algorithms need, writes the record and
removes the folder.
"""
