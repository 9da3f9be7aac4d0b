"""Datastores of studies and their labels: a folder or a DICOMweb server."""
