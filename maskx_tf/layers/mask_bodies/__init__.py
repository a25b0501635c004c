"""Bodies of the mask head: from the features of a RoI to those of its mask's pixels.

A body is a Keras layer with the attributes `filters`, C, and `upsampling`, u. It turns RoI features
[N, S, S, C'] into pixel features [N, S, S, u, u, C]: u x u pixels for each cell of the RoI, so that
what upsamples does not have to put pixels in order (`mask_head.in_rows` does); u = 1 of a body that
does not. The line in `choices.MASK_BODIES` makes it a choice.
"""
