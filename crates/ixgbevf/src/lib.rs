//! Intel 82599 virtual function: registers and model.
