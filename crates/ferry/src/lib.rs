//! The migration itself: phases, strategies, check, link, report.
