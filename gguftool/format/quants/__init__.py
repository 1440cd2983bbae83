"""Quantized types that no package dequantizes, as tables of where their bits lie, and the code that walks the tables.

`fields` says where numbers lie in a block, `codebooks` has the values that codes stand for, `lookup` computes, `types`
lists the types, `packing` undoes interleaved rows, `repacks` lists the interleaved types.
"""
