// Package broker is the domain. An Identity makes a Request; a Policy turns it
// into a Decision; once its obligations are met, the broker opens a Lease; an
// Issuer turns the Lease into a Credential. Each step appends one audit.Record
// in the transaction that makes it true.
//
// The files request.go and lease.go say which state may follow which, as pure
// functions. The files ask.go, collect.go and end.go say in what order store,
// issuer and log act; each flow is one straight function with a comment at
// every point of no return.
package broker
