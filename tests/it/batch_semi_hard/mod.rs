mod laws;
mod property;
