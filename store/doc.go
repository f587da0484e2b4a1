// Package store keeps the broker's rows and its log in SQLite, for one process, or in
// PostgreSQL, which several processes (replicas) share. Store implements broker.Store: View
// reads a snapshot, Update writes.
//
// # Group commit
//
// Making a transaction durable costs one write to disk that has to be waited
// for. So concurrent Updates share a transaction: they form a group, and each
// of them is a member.
//
// Updates wait in a queue (queue.go). If no Update leads, the first one does: it begins a
// transaction, takes all that wait as one group, runs and commits them, appoints the first
// Update that came meanwhile as the next leader, and wakes its members. There is
// no goroutine for this; the callers' own goroutines take turns.
//
// Within a group (group.go), in this order:
//
//  1. The transaction begins, and one query per table reads the rows that the members
//     named in reads.
//  2. Each member's function runs, one after the other. A member sees the rows
//     that the members before it put. What it puts and appends is buffered, and
//     joins the group only if its function succeeds.
//  3. The entries of all members get one time, their indexes and their hashes
//     (flush.go).
//  4. The head of the log is written, then the rows, then the records, then
//     COMMIT.
//
// In SQLite, the head comes first because it detects another writer. The head row has a
// random nonce, which every commit replaces: the UPDATE names the nonce that the
// writer knows, and matches no row if another process has committed since. Then
// everything the group read from memory (the tree, the blocks, the revision) is out
// of date; nothing of it has been written yet, and the group runs again from what
// the database has.
//
// # PostgreSQL
//
// What differs between the databases when a group is written is an engine (engine.go). Code
// that reads has one text for each query, in SQLite's words, which the driver of PostgreSQL
// translates (postgres_driver.go, postgres_dialect.go). The tables follow from the same
// migrations.
//
// A group of PostgreSQL has three round trips (postgres_engine.go): it locks the head row,
// reads, and sends all that it writes with COMMIT. While one replica holds the lock, the others
// gather their next groups. Each commit leaves a row in the feed, from which the other replicas
// bring what they keep in memory up to date (feed.go): in their own groups, before each read
// that memory answers, and when the server notifies them (listen.go). Background work is
// divided by claims (duties.go).
//
// # Failures
//
// A member whose function returns an error, or panics, contributes nothing, and
// the others go on. If the database rejects the rows of a member (a constraint,
// say), the transaction is lost and every member runs again in a transaction of
// its own, so that only that member fails. This is why the function of an Update
// may run more than once.
//
// An Update returns when its outcome is known: its rows and records are durable,
// or nothing of it happened. A context that ends while the Update is still in
// the queue takes it out of the queue; once it is part of a group, it waits for
// the truth. If the answer of COMMIT is lost, the writer looks for the nonce of
// this commit: in SQLite in the head row, in PostgreSQL in the row of this process in
// writers. It retries for as long as it takes, because until then no answer would be true.
//
// # A full disk
//
// Revocations have to be recorded even when the disk is full, so the store
// keeps a reserve: a file next to the database, of random bytes, that occupies
// space (reserve.go). When a write fails for lack of space, the store deletes
// the reserve and runs the group again. From then on only members whose records
// are all about something that ends are let through, until the reserve can be
// made again. Degraded reports this state, and /readyz shows it.
//
// # Tables
//
// Rows have an id, an encoded body, and columns only where rows are found by
// them (rows.go, row_encoding.go, field_encoding.go). A request and a lease list
// the records about them (records.go).
//
// A request that is collected in the call that files it has one row for itself and its
// lease, until one of them changes (carried.go).
//
// The leases whose credentials may work are also kept in memory (holdings.go), as a
// copy of the tables live and lingering that follows every commit. Counts for gauges,
// the live leases of a holder and the expired rows that Sweep deletes are found
// there. A lease takes 40 to 107 bytes (lease_set.go).
//
// What may be used once, such as a proof of possession, has a row until it expires, in the
// order of expiry. Whether something was used is answered from memory (spent.go): 30 bytes for
// each of the last minutes' proofs.
//
// The log is one row per record. The row also has the hashes of the tree nodes
// that the record completes: node n of a level is in record ((n+1)<<level)-1.
// So appending a record writes one row, and a proof reads a few rows by key.
//
// Two tables are projections of the log, written about once a second: the counts of each
// hour, and an index of records by kind (activity.go). Another one counts records by their
// traits, for evidence (tallies.go).
//
// # Where the bytes of an issuance are
//
// An issuance of one of the broker's own tokens takes about 1,430 bytes, as
// BenchmarkDisk in internal/brokertest measures:
//
//	the record's leaf        898   a contract: canonical JSON, hashed into the tree
//	the record's hashes       64   of two tree nodes on average
//	the request's row        334   requester, decision, three digests, times
//	its lease                 12   in the same row: what does not follow from the request
//	pages                    118   keys, headers and free space of SQLite's B-trees
//
// A credential of another system, a lease of more than an hour, a renewal and a lease that
// was ended have a row of their own, of about 170 bytes, and one in live (85 bytes) or
// lingering while the credential works.
//
// The rows repeat some of what the leaf says, because the leaf may be large, is
// only ever read to be verified, and its free texts can be erased. A workload's
// trust domain and paths follow from its ID and are not stored.
package store
