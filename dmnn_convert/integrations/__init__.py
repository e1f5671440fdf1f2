"""Dynamic training and sharing inside other people's tools: Lightning, transformers, the Hub.

Each module imports its library: take `dmnn_convert.integrations.lightning` where you need it.
"""
