"""The vendor's calibration habit: a modified net that fills its record when it runs.

The modified net is the float net, fused, with weights rounded to the values that the quantized ones stand for, and with
a Python layer of ours in front of the quantized layers. Each of these keeps what it sees in a folder beside the record,
in files of its own. When all of them have seen `batch_num` batches, the one that was last goes through everything that
was kept, in as many passes as the algorithms need, writes the record and removes the folder.
"""
