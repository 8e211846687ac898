# SPDX-License-Identifier: BSD-3-Clause
from setuptools import setup

setup(cffi_modules=["ext/build_ffi.py:ffibuilder"])
