# a package, so that its conftest.py does not hide tests/conftest.py from the other tests
