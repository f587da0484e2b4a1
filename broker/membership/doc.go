// Package membership makes people and workloads members of groups for the time of a
// lease. The systems with the groups are directories: LDAP servers and SCIM servers.
//
// # Who owns a membership
//
// A membership is one member of one group of one system. Several leases may rely on
// it: a renewal and its predecessor, two entitlements of the same group, two issuers
// of the same system. So the state belongs to the membership and not to a lease. The
// Ledger keeps one row for each (broker.Membership): the leases that rely on it (its
// claims), and whether the broker made it or found it.
//
//   - A membership that existed before the first claim is not the broker's. It stays.
//   - A membership that the broker made is removed when its last claim ends.
//
// # The order of steps
//
// A claim is durable before the broker adds the member, in a transaction that requires
// the lease to be issuing still. So a process that dies in between leaves a claim of a
// lease that is revoked after the restart, and a lease that was revoked first adds no one.
// A release is recorded after the broker has removed the member and read that it is gone,
// because ending access must not wait for the log. Steps on one membership run one after
// the other. Only one process uses a database, so a lock in memory is enough for that.
//
// # Differences
//
// Other people change groups, too. Compare reads the memberships that leases rely on, and
// those that the broker removed lately, and records where a system disagrees. It changes
// nothing in the system, because someone meant that change.
package membership
