package broker

// BoundDetails narrows an ask to what the proof of a delegation allows.
var BoundDetails = (*Delegation).bound
