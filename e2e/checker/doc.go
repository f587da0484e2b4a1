// Package checker tests a broker in the manner of Jepsen. Clients call one or more
// replicas while faults strike them. Every call goes into a history: who called what at
// which replica, when the call began and ended, and what the answer was. Afterwards,
// judges compare the history with the audit log, which they read from the database with
// another process and verify. They do not trust the answers of the broker.
//
// Every operation has a trace context of its own (W3C Trace Context), which the broker
// puts into the records that the operation causes. So the judges know which operation
// caused which record, even if the answer was lost.
package checker
