"""Where studies and their labels lie: a folder, or a DICOMweb server."""
