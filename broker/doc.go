// Package broker is the domain. An Identity makes a Request; a Policy turns it
// into a Decision; once its obligations are met, the broker opens a Lease; an
// Issuer turns the Lease into a Credential. Each step appends one audit.Record
// in the transaction that makes it true.
//
// # Nouns
//
//	identity.go     Identity, Proof, Person; Caller, the first argument of every flow
//	names.go        the forms of SPIFFE IDs, trust domains and people; people.go: accounts of one person
//	url.go          the one spelling of a URL of the broker
//	rules.go        Rules: Policy, Catalogue of Entitlements, Groups, WorkloadLabels; Decision, Obligations
//	request.go      Ask, Request and its states; vote.go: Approval, Vote, Grant, ApprovalProgress
//	lease.go        Lease, Credential and their states; lease_end.go: the outcomes of ending one
//	issuer.go       Issuer and its optional interfaces; Secret
//	account.go      Account, Passkey; session_rows.go: the rows of package session
//	notice.go       Notice, which package notify delivers
//	store.go        Store, Tx, and the rows that no other file has
//	errors.go       sentinels and Refusal; id.go: IDs; seal.go: Sealer
//
// # Flows
//
//	ask.go          Ask: ask -> draft.go: request -> policy -> stored, pending or approved
//	approve.go      Vote, and the checks that enough people can approve; review.go: break-glass and Review
//	collect.go      Collect, AskAndCollect, Renew: decide again, then
//	issue.go        open a lease and issue its credential, with the points of no return
//	revoke.go       Revoke, Abandon: one lease; kill.go and block.go: the kill switch, of a selector (selector.go)
//	reaper.go       ends leases that are due; revocation_queue.go: ends that could not be recorded
//	revision.go     SetRules, the revision in force, and the retry of calls that lost a race
//	denials.go      refusals and their records; limits.go: limits; idempotency.go: repeated calls
//	facts.go        write: a change and its record in one transaction; what records show
//
// # Queries
//
//	list.go         Request, Lease, lists of them, and who may see what
//	offers.go       Entitlements as the caller may request them
//	introspect.go   Introspect, RevokeToken
//	inbox.go        Inbox, Effect; history.go: RequestHistory; wait.go: Await, Watch; records.go: RecordsOf
//
// # What a newcomer must know
//
// Time is an argument: Caller.At. Only loops (Run) and long calls (clock) read
// the clock. A function given to Store.Update may run more than once, and does no
// I/O, signing or policy: decide and sign before. The order of store, issuer and
// log is the design: each flow is one straight function with a comment at every
// point of no return. A credential leaves only after its record is durable, and
// ending a credential never waits for the log.
package broker
