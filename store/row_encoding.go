package store

import (
	"net/netip"
	"time"

	"accessbroker.internal/broker"
)

// The bodies of rows. The row's key is not in its body, and the tags are
// forever: see codec.

func requestFields(r *broker.Request, c *codec) {
	c.int(1, &r.Version)
	status := int(r.Status)
	c.int(2, &status)
	r.Status = broker.RequestStatus(status)
	sub(c, 3, &r.Requester, identityFields)
	c.text(4, &r.Entitlement)
	c.array(5, r.Effect[:])
	c.texts(6, &r.Scopes)
	c.duration(7, &r.TTL)
	c.flag(8, &r.TTLAsked)
	c.duration(9, &r.Duration)
	c.text(10, &r.Justification)
	c.text(11, &r.Ticket)
	pairs(c, 12, &r.Parameters, textField)
	pairs(c, 13, &r.Salts, saltField)
	addressField(c, 14, &r.SourceIP)
	c.array(15, r.Digest[:])
	sub(c, 16, &r.Decision, decisionFields)
	subs(c, 17, &r.Approvals, approvalFields)
	c.text(18, &r.DeniedBy)
	c.time(19, &r.Created)
	c.time(20, &r.Lapses)
	c.time(21, &r.Approved)
	c.time(22, &r.CollectUntil)
	c.time(23, &r.FirstExpires)
	c.flag(24, &r.BreakGlass)
	c.time(25, &r.NotBefore)
	c.array(26, r.Extends[:])
	c.time(27, &r.ReviewDue)
	c.time(28, &r.Reviewed)
	subs(c, 29, &r.Verdicts, approvalFields)
}

func textField(s *string, c *codec)    { c.text(2, s) }
func saltField(s *[16]byte, c *codec)  { c.array(2, s[:]) }
func timeField(t *time.Time, c *codec) { c.time(2, t) }
func keyField(k *broker.CounterKey, c *codec) {
	c.text(1, &k.Policy)
	c.text(2, &k.Holder)
	c.text(3, &k.Entitlement)
}

func addressField(c *codec, tag uint64, a *netip.Addr) {
	var b []byte
	if !c.reading {
		b, _ = a.AppendBinary(nil) // never fails
	}
	c.bytes(tag, &b)
	if c.reading && len(b) > 0 && a.UnmarshalBinary(b) != nil {
		c.err = errBody
	}
}

func identityFields(i *broker.Identity, c *codec) {
	c.text(1, &i.ID)
	c.text(2, &i.TrustDomain)
	c.texts(3, &i.Paths)
	c.text(4, (*string)(&i.Kind))
	c.text(5, (*string)(&i.Proof.Method))
	c.array(6, i.Proof.SHA256[:])
	c.time(7, &i.Proof.Expires)
	c.text(8, &i.Team)
	c.texts(9, &i.Accountable)
	switch {
	case !c.reading && i.Person != nil:
		sub(c, 10, i.Person, personFields)
	case c.reading && c.take(10, length):
		i.Person = &broker.Person{}
		c.inner(func() { personFields(i.Person, c) })
	}
}

func personFields(p *broker.Person, c *codec) {
	c.text(1, &p.Provider)
	c.texts(2, &p.Groups)
	c.text(3, &p.Manager)
	c.time(4, &p.Claimed)
	c.time(5, &p.Login)
	c.text(6, &p.Name)
	c.text(7, &p.Email)
}

func decisionFields(d *broker.Decision, c *codec) {
	c.flag(1, &d.Permit)
	c.texts(2, &d.Policies)
	c.texts(3, &d.Reasons)
	sub(c, 4, &d.Obligations, obligationFields)
	c.array(5, d.Revision[:])
}

func obligationFields(o *broker.Obligations, c *codec) {
	subs(c, 1, &o.Approvals, needFields)
	c.duration(2, &o.MaxTTL)
	c.duration(3, &o.MaxDuration)
	c.flag(4, &o.Justification)
	c.texts(5, &o.Tickets)
	subs(c, 6, &o.Limits, limitFields)
	subs(c, 7, &o.MaxActive, limitFields)
	c.int(8, &o.Denials)
	c.flag(9, &o.ExcludeTeam)
	c.flag(10, &o.Comment)
	c.flag(11, &o.Signed)
	c.duration(12, &o.LapseAfter)
	subs(c, 13, &o.Escalations, escalationFields)
	subs(c, 14, &o.Review, needFields)
	c.duration(15, &o.ReviewWithin)
}

func escalationFields(e *broker.Escalation, c *codec) {
	c.duration(1, &e.After)
	c.text(2, &e.Group)
}

func needFields(n *broker.ApprovalNeed, c *codec) {
	c.text(1, &n.Group)
	c.int(2, &n.Count)
}

func limitFields(l *broker.Limit, c *codec) {
	c.text(1, &l.Policy)
	c.int(2, &l.Count)
	c.duration(3, &l.Per)
}

func approvalFields(a *broker.Approval, c *codec) {
	c.text(1, &a.Person)
	c.texts(2, &a.Groups)
	c.array(3, a.Digest[:])
	c.flag(4, &a.Approve)
	c.text(5, &a.Comment)
	c.texts(6, &a.Scopes)
	c.duration(7, &a.TTL)
	c.duration(8, &a.Duration)
	c.time(9, &a.At)
	c.array(10, a.Salt[:])
	c.flag(11, &a.Signed)
}

func leaseFields(l *broker.Lease, c *codec) {
	c.array(1, l.Request[:])
	status := int(l.Status)
	c.int(2, &status)
	l.Status = broker.LeaseStatus(status)
	c.text(3, &l.Holder)
	c.text(4, &l.Entitlement)
	c.text(5, &l.Issuer)
	c.texts(6, &l.Scopes)
	pairs(c, 7, &l.Parameters, textField)
	c.time(8, &l.Opened)
	c.time(9, &l.Expires)
	c.array(10, l.Confirm[:])
	c.text(11, &l.Type)
	c.text(12, (*string)(&l.Revocation))
	c.bytes(13, &l.Handle)
	c.text(14, &l.Owner)
	c.time(15, &l.Deadline)
	c.array(16, l.Replaces[:])
	subs(c, 17, &l.Limits, keyField)
	c.time(18, &l.EndAsked)
	c.text(19, &l.EndHow)
	c.time(20, &l.Ended)
	c.int(21, &l.Attempts)
	c.time(22, &l.NextTry)
	c.text(23, &l.LastError)
	c.time(24, &l.Rotates)
}

func counterFields(k *broker.Counter, c *codec) {
	bucketsField(c, 1, &k.Buckets)
	pairs(c, 2, &k.Active, timeField)
	c.time(3, &k.Expires)
}

func bucketsField(c *codec, tag uint64, m *map[int64]int) {
	type bucket struct {
		slice int64
		count int
	}
	var list []bucket
	if !c.reading {
		for slice, count := range *m {
			list = append(list, bucket{slice, count})
		}
	}
	subs(c, tag, &list, func(b *bucket, c *codec) {
		c.int64(1, &b.slice)
		c.int(2, &b.count)
	})
	if c.reading && len(list) > 0 {
		*m = make(map[int64]int, len(list))
		for _, b := range list {
			(*m)[b.slice] = b.count
		}
	}
}

func blockFields(b *broker.Block, c *codec) {
	c.text(1, &b.Reason)
	c.text(2, &b.By)
	c.time(3, &b.Since)
	c.time(4, &b.Lifted)
	c.text(5, &b.Selector.Kind)
	c.text(6, &b.Selector.Name)
	c.time(7, &b.Ends)
}

func idempotencyFields(i *broker.Idempotency, c *codec) {
	c.array(1, i.Body[:])
	c.array(2, i.Request[:])
	c.array(3, i.Lease[:])
	c.time(4, &i.Created)
	c.int(5, &i.Repeats)
}

func askFields(a *broker.OpenAsk, c *codec) {
	c.array(1, a.Request[:])
	c.time(2, &a.Expires)
}

func signingKeyFields(k *broker.SigningKey, c *codec) {
	c.text(1, &k.Algorithm)
	c.bytes(2, &k.Public)
	c.bytes(3, &k.Sealed)
	c.time(4, &k.Published)
	c.time(5, &k.Signs)
	c.time(6, &k.Retires)
	c.text(7, &k.ID.Purpose)
	c.text(8, &k.ID.ID)
}

func noticeFields(n *broker.Notice, c *codec) {
	c.text(1, (*string)(&n.Event))
	c.array(2, n.Request[:])
	c.text(3, &n.Group)
	c.text(4, &n.Channel)
	c.time(5, &n.Created)
	c.time(6, &n.Due)
	c.int(7, &n.Attempts)
	c.time(8, &n.Expires)
	c.text(9, &n.Requester)
	c.text(10, &n.Person)
	c.text(11, &n.Address)
	c.time(12, &n.Counts)
}

func tellingFields(t *broker.Telling, c *codec) {
	c.array(1, t.Request[:])
	c.text(2, &t.Channel)
	c.texts(3, &t.References)
	c.time(4, &t.Expires)
}

func reviewsFields(r *broker.Reviews, c *codec) {
	pairs(c, 1, &r.Open, timeField)
	c.text(2, &r.Entitlement)
	pairs(c, 3, &r.By, textField)
}

func sessionFields(s *broker.Session, c *codec) {
	sub(c, 1, &s.Who, identityFields)
	c.text(2, &s.Client)
	c.text(3, &s.SID)
	c.time(4, &s.Created)
	c.time(5, &s.Seen)
	c.time(6, &s.Expires)
	c.bytes(7, &s.Sealed)
	c.time(8, &s.Closed)
}

func logoutFields(l *broker.Logout, c *codec) {
	c.time(1, &l.At)
	c.time(2, &l.Expires)
}

func loginFields(l *broker.Login, c *codec) {
	c.text(1, (*string)(&l.Kind))
	c.array(2, l.Challenge[:])
	c.array(3, l.Device[:])
	// 4 and 5 were the person and the provider's session.
	c.time(6, &l.Created)
	c.time(7, &l.Expires)
	c.text(8, (*string)(&l.State))
	c.text(9, &l.From)
	c.time(10, &l.Polled)
	c.array(11, l.By[:])
}

func accountFields(a *broker.Account, c *codec) {
	subs(c, 1, &a.Passkeys, passkeyFields)
	c.text(2, &a.Name)
	c.text(3, &a.Email)
	c.text(4, (*string)(&a.Person))
}

func passkeyFields(p *broker.Passkey, c *codec) {
	c.bytes(1, &p.ID)
	c.bytes(2, &p.Public)
	count := int64(p.SignCount)
	c.int64(3, &count)
	p.SignCount = uint32(count)
	c.text(4, &p.Name)
	c.time(5, &p.Enrolled)
	c.time(6, &p.Counts)
	c.text(7, &p.VouchedBy)
	c.time(8, &p.Removed)
	c.text(9, &p.RP)
}
