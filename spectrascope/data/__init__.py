"""Files shipped with the package; sources and licences in ``README.md`` beside this file.

``digits.npz`` holds 1797 handwritten digits; ``digits_cnn_early.safetensors`` and ``digits_cnn.safetensors`` the
network trained on 1297 of them by ``examples/train_digits_cnn.py``, after 10 epochs and at the end;
``imagenet_wnids.txt`` the
ImageNet class ids in class order.
"""
