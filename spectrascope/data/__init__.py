"""Files shipped with the package; sources and licences in ``README.md`` beside this file.

``digits.npz`` holds 1797 handwritten digits, ``digits_cnn_early.safetensors`` and ``digits_cnn.safetensors`` the network
trained on 1297 of them, after 10 and 20 epochs,
by ``examples/train_digits_cnn.py``, ``imagenet_wnids.txt`` the ImageNet class ids in class order.
"""
