"""DICOM through pydicom and highdicom: which images a folder holds, their grid, their values.

No patient field and no identifier leaves this wing, in a name, a message or metadata.
"""
