"""Read DICOM with pydicom and highdicom: the images in a folder, their grids and their values.

No patient field and no identifier leaves this subpackage in a name, a message or metadata.
"""
