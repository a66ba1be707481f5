//! Both services inside this process: their databases, listeners and tasks.
