"""What Python callers use: functions that take objects or paths, and results that show themselves.

``import spectrascope`` binds the functions lazily; nothing is imported here, so that reading a report needs no torch.
"""
