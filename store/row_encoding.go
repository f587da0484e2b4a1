package store

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// encodeBody returns the body of a row, in the memory of a group if s is not nil. The row's
// key is not part of it.
func encodeBody(r broker.Row, s *scratch) ([]byte, error) {
	c := coders.Get().(*coder)
	defer coders.Put(c)
	c.buf = append(c.buf[:0], bodyVersion)
	err := rowFields(r, c)
	return s.copy(c.buf, recordsRoom), err
}

// coders holds coders that encode, so that a body needs memory only in its size.
var coders = sync.Pool{New: func() any { return newCoder() }}

// recordsRoom is room in a body for the record that the same transaction appends.
const recordsRoom = recordsHeader + binary.MaxVarintLen64

// decodeRow returns the row of a key from its body.
func decodeRow(key broker.Key, body []byte) (broker.Row, error) {
	r, err := newRow(key)
	if err == nil {
		err = decodeBody(body, r)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the row %v: %w", key, err)
	}
	return r, nil
}

// decodeBody decodes a body into a row.
func decodeBody(body []byte, r broker.Row) error {
	c, err := readCoder(body)
	if err != nil {
		return err
	}
	if err := rowFields(r, c); err != nil {
		return err
	}
	return c.failure()
}

// newRow returns an empty row with the key.
func newRow(key broker.Key) (broker.Row, error) {
	switch k := key.(type) {
	case broker.RequestID:
		return &broker.Request{ID: k}, nil
	case broker.LeaseID:
		return &broker.Lease{ID: k}, nil
	case broker.CounterKey:
		return &broker.Counter{CounterKey: k}, nil
	case broker.BlockKey:
		return &broker.Block{Selector: k}, nil
	case broker.IdempotencyID:
		return &broker.Idempotency{IdempotencyID: k}, nil
	case broker.AskKey:
		return &broker.OpenAsk{AskKey: k}, nil
	case broker.SigningKeyID:
		return &broker.SigningKey{ID: k}, nil
	case broker.NoticeID:
		return &broker.Notice{ID: k}, nil
	case broker.ReviewKey:
		return &broker.Reviews{ReviewKey: k}, nil
	case broker.SessionKey:
		return &broker.Session{SessionKey: k}, nil
	case broker.LogoutKey:
		return &broker.Logout{LogoutKey: k}, nil
	case broker.LoginKey:
		return &broker.Login{LoginKey: k}, nil
	case broker.PersonKey:
		return &broker.Account{Person: k}, nil
	case broker.DeliveryKey:
		return &broker.Delivery{DeliveryKey: k}, nil
	case broker.RevisionKey:
		return &broker.Revision{}, nil
	case broker.SpentKey:
		return &broker.Spent{SpentKey: k}, nil
	case broker.CollectedKey:
		return &broker.Collected{CollectedKey: k}, nil
	case broker.AssessmentKey:
		return &broker.Assessment{Supplier: k}, nil
	case broker.ExtensionKey:
		return &broker.Extension{Supplier: k}, nil
	case broker.SponsorKey:
		return &broker.SponsorNotices{Supplier: k}, nil
	case broker.MembershipID:
		return &broker.Membership{ID: k}, nil
	case broker.StandingKey:
		return &broker.Standing{StandingKey: k}, nil
	case broker.SignalKey:
		return &broker.Signal{SignalKey: k}, nil
	case broker.StreamKey:
		return &broker.Stream{StreamKey: k}, nil
	case broker.HeldSignalKey:
		return &broker.HeldSignal{HeldSignalKey: k}, nil
	case broker.CampaignID:
		return &broker.Campaign{ID: k}, nil
	case broker.ReviewItemKey:
		return &broker.ReviewItem{ReviewItemKey: k}, nil
	case broker.SuspensionKey:
		return &broker.SuspensionRow{SuspensionKey: k}, nil
	case broker.StatusListID:
		return &broker.StatusList{ID: k}, nil
	case broker.RecoveryKey:
		return &broker.Recovery{RecoveryKey: k}, nil
	case broker.OrphanKey:
		return &broker.Orphan{OrphanKey: k}, nil
	}
	if r := directoryRow(key); r != nil {
		return r, nil
	}
	return nil, fmt.Errorf("a key of type %T has no table", key)
}

// rowFields encodes or decodes the fields of a row.
func rowFields(r broker.Row, c *coder) error {
	switch r := r.(type) {
	case *broker.Request:
		requestFields(r, c)
	case *broker.Lease:
		leaseFields(r, c)
	case *broker.Counter:
		c.fields(&r.Buckets, &r.Active, &r.Expires)
	case *broker.Block:
		c.fields(&r.Reason, &r.By, &r.Since, &r.Lifted, &r.Selector.Kind, &r.Selector.Name, &r.Ends)
	case *broker.Idempotency:
		c.fields(&r.Body, &r.Request, &r.Lease, &r.Created, &r.Repeats)
	case *broker.OpenAsk:
		c.fields(&r.Request, &r.Expires)
	case *broker.SigningKey:
		c.fields(&r.Algorithm, &r.Public, &r.Sealed, &r.Published, &r.Signs, &r.Retires, &r.ID.Purpose, &r.ID.ID)
	case *broker.Notice:
		noticeFields(r, c)
	case *broker.Reviews:
		c.fields(&r.Open, &r.Entitlement, &r.By, &r.For)
	case *broker.Session:
		c.fields(&r.Who, &r.Client, &r.SID, &r.Created, &r.Seen, &r.Expires, &r.Sealed, &r.Closed)
	case *broker.Logout:
		c.fields(&r.At, &r.Expires)
	case *broker.Login:
		loginFields(r, c)
	case *broker.Account:
		c.fields(&r.Passkeys, &r.Name, &r.Email, (*string)(&r.Person), &r.EmailVerified)
	case *broker.Delivery:
		c.fields(&r.Request, &r.Channel, &r.References, &r.Expires)
	case *broker.Revision:
		c.fields(&r.Digest, &r.Base, &r.Since, &r.Replica, &r.Earlier)
	case *broker.Spent:
		c.fields(&r.Expires)
	case *broker.Collected:
		c.fields(&r.Last)
	case *broker.Assessment:
		c.fields(&r.ID, &r.Version, &r.By, &r.At, &r.Tier, &r.ValidUntil, &r.Evidence, &r.Record, &r.Questions, &r.Answers, &r.Salts, &r.Signed, &r.Settling, &r.Notified)
	case *broker.Extension:
		c.fields(&r.ID, &r.From, &r.Until, &r.Reason, &r.Salts, &r.AskedBy, &r.AskedAt, (*string)(&r.Decision), &r.DecidedBy, &r.DecidedAt, &r.Comment)
	case *broker.SponsorNotices:
		c.fields(&r.Ends, &r.Sent)
	case *broker.Membership:
		c.fields(&r.Issuer, &r.Holder, &r.System, &r.Group, &r.Member, &r.Place, &r.Claims, &r.Existing,
			&r.Added, &r.Removed, &r.Touched, (*string)(&r.Difference), &r.Since)
	case *broker.Standing:
		c.fields(&r.Version, &r.Facts, &r.Ended, &r.Fallen, &r.Cause, &r.Ending, &r.Held, &r.Emptied)
	case *broker.Signal, *broker.Stream, *broker.HeldSignal:
		signalFields(r, c)
	case *broker.Campaign:
		campaignFields(r, c)
	case *broker.ReviewItem:
		itemFields(r, c)
	case *broker.SuspensionRow:
		suspensionFields(r, c)
	case *broker.StatusList:
		c.fields(&r.Opened, &r.Closes, &r.Expires)
	default:
		if directoryFields(r, c) || recoveryFields(r, c) {
			return nil
		}
		return fmt.Errorf("a row of type %T has no table", r)
	}
	return nil
}

// The fields of the larger rows, and of the types within rows. A field's tag is
// its place in the list, and is stored: only append to a list, and put nil
// where a field is removed.

func requestFields(r *broker.Request, c *coder) {
	var known following
	if !c.reading {
		known = followingOf(r)
	}
	approved, until, first := r.Approved, r.CollectUntil, r.FirstLease
	if known&approvedAtOnce != 0 {
		approved = time.Time{}
	}
	if known&endsByDuration != 0 {
		until = time.Time{}
	}
	if known&opensItsLease != 0 {
		first = broker.LeaseID{}
	}
	c.fields(&r.Version, &r.Status, &r.Requester, &r.Entitlement, &r.Effect,
		&r.Scopes, &r.TTL, &r.TTLAsked, &r.Duration, &r.Justification, &r.Ticket, &r.Parameters, &r.Salts,
		&r.SourceIP, &r.Digest, &r.Decision, &r.Approvals, &r.DeniedBy,
		&r.Created, &r.Lapses, &approved, &until, &r.FirstExpires, &r.BreakGlass, &r.NotBefore, &r.Extends,
		&r.ReviewDue, &r.Reviewed, &r.Verdicts, &first,
		&r.RestsOn, &r.Until, &r.EndedBy, &r.Awaits, &r.Delegation, &r.Message, &r.KeyThumbprint, &r.Details, (*uint32)(&known), &r.Erased)
	c.records(&r.Records)
	if c.reading {
		r.Approved, r.CollectUntil, r.FirstLease = approved, until, first
		known.restore(r)
	}
}

// following is a set of fields of a request that follow from others, and are not stored.
// They do for most requests that are collected in the call that files them.
type following uint32

const (
	approvedAtOnce following = 1 << iota // Approved is Created
	endsByDuration                       // CollectUntil is Duration after Approved
	opensItsLease                        // FirstLease has the bytes of the request's ID
)

func followingOf(r *broker.Request) (known following) {
	if !r.Created.IsZero() && r.Approved.Equal(r.Created) {
		known |= approvedAtOnce
	}
	if !r.Approved.IsZero() && r.CollectUntil.Equal(r.Approved.Add(r.Duration)) {
		known |= endsByDuration
	}
	if !r.ID.IsZero() && r.FirstLease == broker.LeaseID(r.ID) {
		known |= opensItsLease
	}
	return known
}

func (f following) restore(r *broker.Request) {
	if f&approvedAtOnce != 0 {
		r.Approved = r.Created
	}
	if f&endsByDuration != 0 {
		r.CollectUntil = r.Approved.Add(r.Duration)
	}
	if f&opensItsLease != 0 {
		r.FirstLease = broker.LeaseID(r.ID)
	}
}

// identityFields leaves the trust domain and the paths of a workload out: they follow
// from its ID, and are a quarter of a request's row.
func identityFields(i *broker.Identity, c *coder) {
	domain, paths, derived := i.TrustDomain, i.Paths, false
	if !c.reading && len(i.Paths) > 0 && i.TrustDomain == broker.TrustDomainOf(i.ID) && slices.Equal(i.Paths, broker.SPIFFEPaths(i.ID)) {
		domain, paths, derived = "", nil, true
	}
	attested := attestationText(i.ID, i.Attested)
	c.fields(&i.ID, &domain, &paths, (*string)(&i.Kind), (*string)(&i.Proof.Method), &i.Proof.SHA256, &i.Proof.Expires,
		&i.Team, &i.Accountable, &i.Person, &i.Accounts, &i.Also, &derived, &i.Suppliers, &i.Purpose, &i.Model, &i.Ends, &attested)
	if c.reading {
		i.Attested = attestationOf(i.ID, attested)
	}
	switch {
	case !c.reading:
	case derived:
		i.TrustDomain, i.Paths = broker.TrustDomainOf(i.ID), broker.SPIFFEPaths(i.ID)
	default:
		i.TrustDomain, i.Paths = domain, paths
	}
}

// The attestation of a workload is stored unless it is spiffe, which that of all workloads was
// in rows of earlier versions.
const notAttested = "none"

func attestationText(id string, a broker.Attestation) string {
	switch isWorkload := broker.TrustDomainOf(id) != ""; {
	case isWorkload && a == broker.AttestedSPIFFE:
		return ""
	case isWorkload && a == "":
		return notAttested
	}
	return string(a)
}

func attestationOf(id, text string) broker.Attestation {
	switch isWorkload := broker.TrustDomainOf(id) != ""; {
	case isWorkload && text == "":
		return broker.AttestedSPIFFE
	case isWorkload && text == notAttested:
		return ""
	}
	return broker.Attestation(text)
}

func personFields(p *broker.Person, c *coder) {
	c.fields(&p.Provider, &p.Groups, &p.Manager, &p.Claimed, &p.Login, &p.Name, &p.Email, &p.Directory, &p.EmailVerified, &p.Sponsor, &p.Ends, &p.StatesEnd)
}

func decisionFields(d *broker.Decision, c *coder) {
	c.fields(&d.Permit, &d.Policies, &d.Reasons, &d.Obligations, &d.Revision)
}

func obligationFields(o *broker.Obligations, c *coder) {
	c.fields(&o.Approvals, &o.MaxTTL, &o.MaxDuration, &o.Justification, &o.Tickets,
		&o.Limits, &o.MaxActive, &o.Denials, &o.ExcludeTeam, &o.Comment, &o.Signed,
		&o.LapseAfter, &o.Escalations, &o.Review, &o.ReviewWithin, &o.SilentDenial, &o.Supplier,
		&o.TicketStates, &o.TicketAssignees, &o.ChangeWindow, &o.Delegates, &o.Binding)
}

func supplierNeedFields(n *broker.SupplierNeed, c *coder) { c.fields(&n.AssessedWithin, &n.MaxRisk) }

func escalationFields(e *broker.Escalation, c *coder) { c.fields(&e.After, &e.Group) }

func needFields(n *broker.ApprovalNeed, c *coder) { c.fields(&n.Group, &n.Count) }

func limitFields(l *broker.Limit, c *coder) { c.fields(&l.Policy, &l.Count, &l.Per) }

func approvalFields(a *broker.Approval, c *coder) {
	c.fields(&a.Person, &a.Groups, &a.Digest, &a.Approve, &a.Comment, &a.Scopes, &a.TTL, &a.Duration, &a.At, &a.Salt, &a.Signed, &a.Accounts)
}

// The broker's own tokens are of this type, and end in this way.
const (
	usualType       = "bearer"
	usualRevocation = broker.RevokedAtExpiry
)

func leaseFields(l *broker.Lease, c *coder) {
	attested := attestationText(l.Holder, l.Attested)
	kind, revocation, usual := l.Type, l.Revocation, !c.reading && l.Type == usualType && l.Revocation == usualRevocation
	if usual {
		kind, revocation = "", ""
	}
	// Tag 14 was the replica that issued the lease.
	c.fields(&l.Request, &l.Status, &l.Holder, &l.Entitlement, &l.Issuer, &l.Scopes, &l.Parameters,
		&l.Opened, &l.Expires, &l.Confirm, &kind, (*string)(&revocation), &l.Handle, nil, &l.Deadline, &l.Replaces,
		&l.Limits, &l.EndAsked, &l.EndHow, &l.Ended, &l.Attempts, &l.NextTry, &l.LastError, &l.Rotates, &l.Previous, &l.EndedBy, &l.Persists,
		&l.Subject, &l.Actors, &l.Parent, &l.Exchanged, &l.KeyThumbprint,
		&l.Listed.List, &l.Listed.Index, &l.Details, &attested,
		&l.Calls.Made, &l.Calls.Refused, &l.Calls.Failed, &l.Calls.Sent, &l.Calls.Received, &l.Calls.Last, &usual)
	if c.reading {
		if l.Type, l.Revocation = kind, revocation; usual {
			l.Type, l.Revocation = usualType, usualRevocation
		}
		l.Attested = attestationOf(l.Holder, attested)
	}
	c.records(&l.Records)
}

func delegationFields(d *broker.Delegation, c *coder) {
	c.fields(&d.Subject, &d.Parent, &d.Actors, &d.Links, &d.Decision, &d.Accountable, &d.Bound)
}

func detailFields(d *broker.Detail, c *coder) {
	c.fields(&d.Type, &d.Actions, &d.Locations, &d.DataTypes, &d.Privileges, &d.Identifier, &d.Tool, &d.Arguments)
}

func argumentFields(a *broker.ArgumentBound, c *coder) {
	c.fields(&a.Name, &a.Values, &a.MaxLength, &a.Number, &a.Min, &a.Max, &a.MaxItems)
}

func leaseIDFields(id *broker.LeaseID, c *coder) { c.fields(id) }

func factFields(f *broker.Fact, c *coder) {
	c.fields(&f.Source, (*string)(&f.State), &f.Cause, &f.From, &f.Until, &f.Confirmed, &f.StaleAt, &f.Details)
}

func standingKeyFields(k *broker.StandingKey, c *coder) { c.fields((*string)(&k.Kind), &k.Name) }

func factEndFields(e *broker.FactEnd, c *coder) { c.fields(&e.Subject, &e.Cause) }

func counterKeyFields(k *broker.CounterKey, c *coder) { c.fields(&k.Policy, &k.Holder, &k.Entitlement) }

func noticeFields(n *broker.Notice, c *coder) {
	c.fields((*string)(&n.Event), &n.Request, &n.Group, &n.Channel, &n.Created, &n.Due, &n.Attempts, &n.Expires,
		&n.Requester, &n.Person, &n.Address, &n.Counts, &n.Title, &n.Text, &n.Page)
}

func loginFields(l *broker.Login, c *coder) {
	// Tags 4 and 5 were the person and the provider's session.
	c.fields((*string)(&l.Kind), &l.Challenge, &l.Device, nil, nil, &l.Created, &l.Expires,
		(*string)(&l.State), &l.From, &l.Polled, &l.By)
}

func passkeyFields(p *broker.Passkey, c *coder) {
	c.fields(&p.ID, &p.Public, &p.SignCount, &p.Name, &p.Enrolled, &p.Counts, &p.VouchedBy, &p.Removed, &p.RP)
}

// domainField encodes or decodes a field of a type of the domain.
func (c *coder) domainField(tag uint64, v any) {
	switch v := v.(type) {
	case *broker.RequestStatus:
		integer(c, tag, v)
	case *broker.LeaseStatus:
		integer(c, tag, v)
	case *broker.RequestID:
		c.array(tag, v[:])
	case *broker.LeaseID:
		c.array(tag, v[:])
	case *broker.StatusListID:
		c.array(tag, v[:])
	case *broker.SessionKey:
		c.array(tag, v[:])
	case *broker.LoginKey:
		c.array(tag, v[:])
	case *audit.Digest:
		c.array(tag, v[:])
	case *broker.Identity:
		nested(c, tag, v, identityFields)
	case **broker.Delegation:
		optional(c, tag, v, delegationFields)
	case **broker.Person:
		optional(c, tag, v, personFields)
	case *broker.Decision:
		nested(c, tag, v, decisionFields)
	case *broker.Obligations:
		nested(c, tag, v, obligationFields)
	case *broker.SupplierNeed:
		nested(c, tag, v, supplierNeedFields)
	case *broker.Tier:
		integer(c, tag, v)
	case *broker.Binding:
		integer(c, tag, v)
	case *[]broker.Escalation:
		repeated(c, tag, v, escalationFields)
	case *[]broker.ApprovalNeed:
		repeated(c, tag, v, needFields)
	case *[]broker.Limit:
		repeated(c, tag, v, limitFields)
	case *[]broker.Approval:
		repeated(c, tag, v, approvalFields)
	case *broker.StandingKey:
		nested(c, tag, v, standingKeyFields)
	case *[]broker.StandingKey:
		repeated(c, tag, v, standingKeyFields)
	case *[]broker.Fact:
		repeated(c, tag, v, factFields)
	case **broker.FactEnd:
		optional(c, tag, v, factEndFields)
	case *[]broker.LeaseID:
		repeated(c, tag, v, leaseIDFields)
	case *[]broker.CounterKey:
		repeated(c, tag, v, counterKeyFields)
	case *broker.CampaignPlan:
		nested(c, tag, v, planFields)
	case *broker.CampaignCounts:
		nested(c, tag, v, countsFields)
	case *broker.ReviewDecision:
		nested(c, tag, v, decidedFields)
	case *broker.CampaignID:
		c.array(tag, v[:])
	case *[]time.Duration:
		repeated(c, tag, v, func(d *time.Duration, c *coder) { c.fields(d) })
	case *[]broker.Passkey:
		repeated(c, tag, v, passkeyFields)
	default:
		c.furtherField(tag, v)
	}
}

// furtherField is domainField for maps and fine grants.
func (c *coder) furtherField(tag uint64, v any) {
	switch v := v.(type) {
	case *[]broker.Detail:
		repeated(c, tag, v, detailFields)
	case *[]broker.Replaced:
		repeated(c, tag, v, func(r *broker.Replaced, c *coder) { c.fields(&r.Digest, &r.Base, &r.Until) })
	case *[]broker.ArgumentBound:
		repeated(c, tag, v, argumentFields)
	case *map[string]string:
		mapped(c, tag, v)
	case *map[string][16]byte:
		mapped(c, tag, v)
	case *map[string]time.Time:
		mapped(c, tag, v)
	case *map[int64]int:
		mapped(c, tag, v)
	default:
		// Not naming the type keeps the fields of a row off the heap.
		panic("store: a field has a type without an encoding")
	}
}
