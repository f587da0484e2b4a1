package store

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"time"

	"accessbroker.internal/broker"
)

// A table holds the rows of one type. Every table has the same shape: an id, a
// body, and perhaps columns by which rows are found.
type table uint8

const (
	requests table = iota
	leases
	counters
	blocks
	idempotency
	asks
	signingKeys
	notices
	openReviews
	sessions
	logouts
	logins
	people
	deliveries
	revision
	collected
	spent
	standings
	memberships
	signals
	streams
	heldSignals
	directoryUsers
	directoryGroups
	directoryMembers
	scimTokens
	assessments
	extensions
	sponsorNotices
	campaigns
	reviewItems
	suspensions
	statusLists
	recoveries
	orphans
	tableCount
)

var tables = [tableCount]struct {
	name   string
	idSize int // 0: not fixed
	extra  []string
}{
	requests:    {"requests", 16, []string{"lapses", "person"}},
	leases:      {"leases", 16, []string{"due"}},
	counters:    {"counters", 0, []string{"expires"}},
	blocks:      {"blocks", 0, nil},
	idempotency: {"idempotency", 32, []string{"expires"}},
	asks:        {"asks", 32, []string{"expires"}},
	signingKeys: {"signing_keys", 0, []string{"purpose"}},
	notices:     {"notices", 16, []string{"due", "channel", "urgent", "requester"}},
	openReviews: {"reviews", 0, nil},
	sessions:    {"sessions", 32, []string{"expires"}},
	logouts:     {"logouts", 0, []string{"expires"}},
	logins:      {"logins", 32, []string{"expires"}},
	people:      {"people", 0, nil},
	deliveries:  {"tellings", 0, []string{"expires"}},
	revision:    {"revision", 0, nil},
	memberships: {"memberships", 32, []string{"issuer", "holder", "differs", "expires"}},
	collected:   {"collected", 16, nil},
	spent:       {"used", 32, nil}, // see spent.go
	standings:   {"standings", 0, []string{"due", "idle"}},
	signals:     {"signals", 0, []string{"expires"}},
	streams:     {"streams", 0, nil},
	heldSignals: {"held_signals", 0, []string{"transmitter", "number"}},

	directoryUsers:   {"directory_users", 16, []string{"expires"}},
	directoryGroups:  {"directory_groups", 16, []string{"expires"}},
	directoryMembers: {"directory_members", 32, []string{"expires"}},
	scimTokens:       {"scim_tokens", 16, []string{"expires"}},

	assessments:    {"assessments", 0, nil},
	extensions:     {"extensions", 0, nil},
	sponsorNotices: {"sponsor_notices", 0, nil},
	campaigns:      {"campaigns", 16, []string{"name", "live"}},
	reviewItems:    {"review_items", 20, []string{"permission", "status", "reviewer"}},
	suspensions:    {"suspensions", 0, []string{"live"}},
	statusLists:    {"status_lists", 16, []string{"expires"}},

	recoveries: {"recoveries", 0, nil},
	orphans:    {"orphans", 0, []string{"due"}},
}

// A row is a broker.Row as it is stored.
type row struct {
	key   broker.Key
	table table
	id    []byte
	body  []byte
	extra []any      // the values of the table's extra columns
	index leaseIndex // of a lease
	rests resting    // of a request
	lists bool       // the row lists its records; see records.go

	at      int64  // of what was used: the key of its row
	lease   []byte // of a request: the lease that it carries; nil: none. See carried.go
	carried bool   // of a lease: its request carries it
}

// A leaseIndex is the index entry of a lease while its credential works. It has
// tables of its own (live and lingering), which are ordered by id and no longer
// than the number of working credentials: leases are kept forever, and so would be
// the entries of an index on them.
type leaseIndex struct {
	liveUntil     int64 // when it ends by time alone; 0: it has ended
	outlivesUntil int64 // when its credential stops working, although the lease has ended; 0: it has stopped
	revoking      bool
	stuckFrom     int64 // see stuckFrom
	kind          leaseKind
	request       broker.RequestID
	holder        string
	listed        broker.StatusPlace
	ended         bool // before its time, or it is ending
}

// A leaseKind is the group in which a lease is counted.
type leaseKind struct{ entitlement, issuer string }

// locate returns the table and the id of a key.
func locate(key broker.Key) (table, []byte, error) {
	switch k := key.(type) {
	case broker.RequestID:
		return requests, k[:], nil
	case broker.LeaseID:
		return leases, k[:], nil
	case broker.CounterKey:
		return counters, joined(k.Policy, k.Holder, k.Entitlement), nil
	case broker.BlockKey:
		return blocks, joined(k.Kind, k.Name), nil
	case broker.IdempotencyID:
		return idempotency, k[:], nil
	case broker.AskKey:
		return asks, k[:], nil
	case broker.SigningKeyID:
		return signingKeys, joined(k.Purpose, k.ID), nil
	case broker.NoticeID:
		return notices, k[:], nil
	case broker.ReviewKey:
		return openReviews, joined(k.Entitlement), nil
	case broker.SessionKey:
		return sessions, k[:], nil
	case broker.LogoutKey:
		return logouts, joined(k.Provider, k.Claim, k.Value), nil
	case broker.LoginKey:
		return logins, k[:], nil
	case broker.PersonKey:
		return people, joined(string(k)), nil
	case broker.DeliveryKey:
		return deliveries, joined(string(k.Request[:]), k.Channel), nil
	case broker.RevisionKey:
		return revision, joined("rules"), nil
	case broker.CollectedKey:
		return collected, k[:], nil
	case broker.SpentKey:
		return spent, k[:], nil
	case broker.AssessmentKey:
		return assessments, joined(string(k)), nil
	case broker.ExtensionKey:
		return extensions, joined(string(k)), nil
	case broker.SponsorKey:
		return sponsorNotices, joined(string(k)), nil
	case broker.MembershipID:
		return memberships, k[:], nil
	case broker.StandingKey:
		return standings, standingID(k), nil
	case broker.SignalKey:
		return signals, joined(k.Transmitter, k.ID), nil
	case broker.StreamKey:
		return streams, joined(string(k)), nil
	case broker.HeldSignalKey:
		return heldSignals, heldSignalID(k), nil
	case broker.CampaignID:
		return campaigns, k[:], nil
	case broker.ReviewItemKey:
		return reviewItems, itemID(k), nil
	case broker.SuspensionKey:
		return suspensions, joined(string(k.Kind), k.Name), nil
	case broker.StatusListID:
		return statusLists, k[:], nil
	case broker.RecoveryKey:
		return recoveries, recoveryID(k), nil
	case broker.OrphanKey:
		return orphans, joined(k.Issuer, k.Target), nil
	}
	if t, id, ok := locateDirectory(key); ok {
		return t, id, nil
	}
	return 0, nil, fmt.Errorf("a key of type %T has no table", key)
}

// joined returns one id for several texts. Different texts have different ids.
func joined(parts ...string) []byte {
	b := make([]byte, 0, 128)
	for _, p := range parts {
		b = binary.AppendUvarint(b, uint64(len(p)))
		b = append(b, p...)
	}
	return b
}

// encode sets out to a row as it is stored, in the memory of a group if s is not nil.
func (out *row) encode(r broker.Row, s *scratch) (err error) {
	out.key = r.Key()
	if out.table, out.id, err = locate(out.key); err != nil {
		return err
	}
	if out.body, err = encodeBody(r, s); err != nil {
		return err
	}
	out.extra = extraColumns(r)
	if request, ok := r.(*broker.Request); ok && len(request.RestsOn) > 0 {
		out.rests = restingOf(request)
	}
	if l, ok := r.(*broker.Lease); ok {
		out.index = leaseIndex{liveUntil(l), outlivesUntil(l), l.Status == broker.LeaseRevoking, stuckFrom(l), leaseKind{l.Entitlement, l.Issuer}, l.Request, l.Holder, l.Listed, hasEnded(l)}
	}
	return nil
}

// extraColumns returns the values of the columns by which a row is found, in
// the order of its table; a nil value is NULL.
func extraColumns(r broker.Row) []any {
	switch r := r.(type) {
	case *broker.Request:
		person := personOf(r.Requester.ID)
		switch {
		case r.Status == broker.RequestPending:
			return []any{ceilMillis(r.Lapses), person}
		case person != nil:
			return []any{nil, person}
		}
		return noValues
	case *broker.Lease:
		if due := r.Due(); !due.IsZero() {
			return []any{due.UnixMilli()}
		}
		return noValue
	case *broker.Standing:
		due, idle := r.Due(), r.Idle()
		if due.IsZero() && idle.IsZero() {
			return noValues
		}
		return []any{orNull(due), orNull(idle)}
	case *broker.Signal:
		return []any{ceilMillis(r.Expires)}
	case *broker.HeldSignal:
		return heldSignalColumns(r)
	case *broker.Counter:
		return []any{ceilMillis(r.Expires)}
	case *broker.Idempotency:
		return []any{ceilMillis(r.Created.Add(broker.IdempotencyLasts))}
	case *broker.OpenAsk:
		return []any{ceilMillis(r.Expires)}
	case *broker.Spent:
		return []any{ceilMillis(r.Expires)}
	case *broker.SigningKey:
		return []any{r.ID.Purpose}
	case *broker.Notice:
		return noticeColumns(r)
	case *broker.Session:
		return []any{ceilMillis(r.Expires)}
	case *broker.Logout:
		return []any{ceilMillis(r.Expires)}
	case *broker.Login:
		return []any{ceilMillis(r.Expires)}
	case *broker.Membership:
		return membershipColumns(r)
	case *broker.Delivery:
		return []any{ceilMillis(r.Expires)}
	case *broker.DirectoryUser, *broker.DirectoryGroup, *broker.DirectoryMember, *broker.SCIMToken:
		return directoryColumns(r)
	case *broker.Campaign:
		return []any{r.Name, ifTrue(r.Status == broker.CampaignBuilding || r.Status == broker.CampaignOpen)}
	case *broker.ReviewItem:
		return itemColumns(r)
	case *broker.SuspensionRow:
		return []any{ifTrue(r.Lifted.IsZero())}
	case *broker.StatusList:
		return []any{ceilMillis(r.Expires)}
	case *broker.Orphan:
		return []any{orNull(r.Due)}
	}
	return nil
}

// noValue is one column with NULL, and noValues two, which most rows have.
var (
	noValue  = []any{nil}
	noValues = []any{nil, nil}
)

// personOf returns the ID of a requester who is not a workload; nil for a workload.
// Workloads file almost all requests, so an index on all requesters would slow every
// issuance down.
func personOf(requester string) any {
	if strings.HasPrefix(requester, "spiffe://") {
		return nil
	}
	return requester
}

// noticeColumns returns the columns by which a notice is found while it is due.
// An urgent notice has no requester there, because urgent notices do not count
// towards a requester's backlog.
func noticeColumns(n *broker.Notice) []any {
	extra := []any{nil, n.Channel, n.Urgent(), nil}
	if !n.Due.IsZero() {
		extra[0] = n.Due.UnixMilli()
	}
	if n.Requester != "" && !n.Urgent() {
		extra[3] = n.Requester
	}
	return extra
}

// These values of liveUntil are later than any expiry: the leases that time
// alone does not end. Leases that are being revoked have a value of their own,
// so that they can be counted without reading the bodies of the others.
const (
	forever    = math.MaxInt64
	untilEnded = forever - 1 // rows that were last written before this value existed have forever
)

// liveUntil returns when a lease stops being live by time alone, in
// milliseconds since 1970; 0 means that it has ended.
func liveUntil(l *broker.Lease) int64 {
	switch l.Status {
	case broker.LeaseActive:
		if l.Due().IsZero() {
			return ceilMillis(l.Expires)
		}
		return forever // its issuer has to end it
	case broker.LeaseIssuing:
		return forever
	case broker.LeaseRevoking:
		return untilEnded
	}
	return 0
}

// outlivesUntil returns when the credential of an ended lease stops working, in
// milliseconds since 1970; 0 means that it has stopped. A status list must also find the
// token of a lease that was abandoned.
func outlivesUntil(l *broker.Lease) int64 {
	if l.OutlivesEnd(l.Ended) || hasEnded(l) && l.HasEnded() && l.Ended.Before(l.Expires) {
		return ceilMillis(l.Expires)
	}
	return 0
}

// orNull returns the value of a column for a time; the zero time is NULL.
func orNull(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return ceilMillis(t)
}

// ceilMillis returns the first millisecond that is not before t, so that an
// index never hides a row that the exact time in its body still shows.
func ceilMillis(t time.Time) int64 { return t.Add(time.Millisecond - 1).UnixMilli() }

// key returns the key of an id: the reverse of locate.
func (t table) key(id []byte) (broker.Key, error) {
	if size := tables[t].idSize; size > 0 && len(id) != size {
		return nil, fmt.Errorf("an id of %s has %d bytes, not %d", tables[t].name, len(id), size)
	}
	switch t {
	case requests:
		return broker.RequestID(id), nil
	case leases:
		return broker.LeaseID(id), nil
	case idempotency:
		return broker.IdempotencyID(id), nil
	case asks:
		return broker.AskKey(id), nil
	case notices:
		return broker.NoticeID(id), nil
	case sessions:
		return broker.SessionKey(id), nil
	case logins:
		return broker.LoginKey(id), nil
	case collected:
		return broker.CollectedKey(id), nil
	case spent:
		return broker.SpentKey(id), nil
	case directoryUsers:
		return broker.DirectoryUserID(id), nil
	case directoryGroups:
		return broker.DirectoryGroupID(id), nil
	case directoryMembers:
		return broker.DirectoryMemberKey{Group: broker.DirectoryGroupID(id[:16]), User: broker.DirectoryUserID(id[16:])}, nil
	case scimTokens:
		return broker.SCIMTokenID(id), nil
	case standings:
		return standingKey(id)
	case memberships:
		return broker.MembershipID(id), nil
	case campaigns:
		return broker.CampaignID(id), nil
	case statusLists:
		return broker.StatusListID(id), nil
	case reviewItems:
		return broker.ReviewItemKey{Campaign: broker.CampaignID(id[:16]), Number: int(binary.BigEndian.Uint32(id[16:]))}, nil
	}
	parts, err := split(id)
	switch {
	case err != nil:
		return nil, err
	case t == counters && len(parts) == 3:
		return broker.CounterKey{Policy: parts[0], Holder: parts[1], Entitlement: parts[2]}, nil
	case t == blocks && len(parts) == 2:
		return broker.BlockKey{Kind: parts[0], Name: parts[1]}, nil
	case t == openReviews && len(parts) == 1:
		return broker.ReviewKey{Entitlement: parts[0]}, nil
	case t == logouts && len(parts) == 3:
		return broker.LogoutKey{Provider: parts[0], Claim: parts[1], Value: parts[2]}, nil
	case t == assessments && len(parts) == 1:
		return broker.AssessmentKey(parts[0]), nil
	case t == extensions && len(parts) == 1:
		return broker.ExtensionKey(parts[0]), nil
	case t == sponsorNotices && len(parts) == 1:
		return broker.SponsorKey(parts[0]), nil
	case t == people && len(parts) == 1:
		return broker.PersonKey(parts[0]), nil
	case t == deliveries && len(parts) == 2 && len(parts[0]) == len(broker.RequestID{}):
		return broker.DeliveryKey{Request: broker.RequestID([]byte(parts[0])), Channel: parts[1]}, nil
	case t == signals && len(parts) == 2:
		return broker.SignalKey{Transmitter: parts[0], ID: parts[1]}, nil
	case t == streams && len(parts) == 1:
		return broker.StreamKey(parts[0]), nil
	case t == heldSignals && len(parts) == 2:
		return heldSignalKey(parts)
	case t == suspensions && len(parts) == 2:
		return broker.SuspensionKey{Kind: broker.PermissionKind(parts[0]), Name: parts[1]}, nil
	case t == revision && len(parts) == 1:
		return broker.RevisionKey{}, nil
	case t == signingKeys && len(parts) == 2:
		return broker.SigningKeyID{Purpose: parts[0], ID: parts[1]}, nil
	}
	return recoveryKey(t, parts)
}

// split returns the texts of an id: the reverse of joined.
func split(id []byte) (parts []string, err error) {
	for len(id) > 0 {
		size, n := binary.Uvarint(id)
		if n <= 0 || size > uint64(len(id)-n) {
			return nil, errBody
		}
		parts = append(parts, string(id[n:n+int(size)]))
		id = id[n+int(size):]
	}
	return parts, nil
}
