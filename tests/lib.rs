//! Empty: the tests are the program `it`.
