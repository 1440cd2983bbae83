"""Decoders of quantized types that no package dequantizes: tables of bit positions, and the code that reads them.

`fields` describes where numbers are in a block, `codebooks` has the values of codes, `lookup` computes, `types` lists
the types, `packing` undoes interleaved rows, `repacks` lists the interleaved types.
"""
