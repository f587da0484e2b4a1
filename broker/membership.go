package broker

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"
)

// Memberships that a directory states count from the next decision on. A vote compares the
// rows of those that it relies on, and a lease ends when the membership that permitted it
// does.

// memberships returns the keys of the memberships that a directory states and by which a
// person is in groups, and the same as records show them. A membership that has ended
// since the groups were read has no key, which checkMemberships refuses.
func (r *Rules) memberships(who Identity, request *Request, groups []string) (rows []DirectoryMemberKey, texts []string) {
	if who.Person != nil && who.Person.Directory != "" {
		known, _ := r.directory.Person(who.ID)
		listed, _ := r.Policy.Groups(who)
		for _, name := range who.Person.Groups {
			for _, group := range r.claimedBy(who, name) {
				if slices.Contains(groups, group) && !slices.Contains(listed, group) {
					rows = append(rows, known.Memberships[name])
					texts = append(texts, group+" "+who.Person.Directory)
				}
			}
		}
	}
	if manager := r.WithLabels(request.Requester).Person; manager != nil && manager.Directory != "" && slices.Contains(groups, GroupManager) {
		texts = append(texts, GroupManager+" "+manager.Directory)
	}
	slices.Sort(texts)
	return slices.Compact(rows), slices.Compact(texts)
}

// claimedBy returns the groups that one claimed name makes a person a member of.
func (r *Rules) claimedBy(who Identity, name string) []string {
	alone := *who.Person
	alone.Groups = []string{name}
	who.Person = &alone
	_, claimed := r.Policy.Groups(who)
	return claimed
}

// checkMemberships returns errOvertaken if a membership has ended since it was read.
func checkMemberships(tx Tx, rows []DirectoryMemberKey) error {
	for _, key := range rows {
		m, err := Get[*DirectoryMember](tx, key)
		switch {
		case ignoreNotFound(err) != nil:
			return err
		case err != nil || !m.Left.IsZero():
			return errOvertaken
		}
	}
	return nil
}

// CauseLeftGroup is the cause of an end by a membership that ended.
const CauseLeftGroup = "left_group"

// Left ends the leases of a person that policy permitted because of groups that the person
// has left. It compares two decisions of one moment, with and without those groups, so
// that nothing ends for another reason.
func (f *Facts) Left(ctx context.Context, person string, groups []string, now time.Time) error {
	q := LeaseQuery{Holder: person, Live: true, Now: now, Limit: pageMax}
	for {
		page, next, err := f.b.page(ctx, q)
		if err != nil {
			return err
		}
		var failed []error
		for _, l := range page {
			failed = append(failed, f.b.endLeft(ctx, l, groups, now))
		}
		if err := errors.Join(failed...); err != nil || next.IsZero() {
			return err
		}
		q.Before = next
	}
}

// endLeft ends a lease, and the grant that it is from, if policy permits it only with the
// groups.
func (b *Broker) endLeft(ctx context.Context, l *Lease, groups []string, now time.Time) error {
	r, err := b.load(ctx, l.Request)
	if err != nil {
		return ignoreNotFound(err)
	}
	rules := b.rules.Load()
	e := rules.Catalogue[r.Entitlement]
	who := rules.WithLabels(r.Requester)
	if e == nil || who.Person == nil || who.Person.Directory == "" {
		return nil
	}
	with := *who.Person
	with.Groups = slices.Concat(who.Person.Groups, groups)
	before := who
	before.Person = &with
	granted := r.granted()
	without, err := b.decideQuery(ctx, rules, granted.query(who, e), now)
	if err != nil || without.Permit {
		return err
	}
	then, err := b.decideQuery(ctx, rules, granted.query(before, e), now)
	if err != nil || !then.Permit {
		return err
	}
	end := &FactEnd{StandingKey{FactPerson, who.ID}, CauseLeftGroup}
	b.cfg.Log.InfoContext(ctx, "ending access of a person who left its group", "person", who.ID, "lease", l.ID.String(), "groups", strings.Join(groups, ", "))
	ends := factEnds{b: b, end: end, now: now, requests: []*Request{r}, leases: []*Lease{l}}
	return ends.write(ctx)
}
