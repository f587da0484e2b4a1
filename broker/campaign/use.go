package campaign

import (
	"context"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/inventory"
)

// Uses tells how permissions were used. Package store implements it from the log.
type Uses interface {
	// Identities returns what is known about identities, sorted by id.
	Identities(ctx context.Context, q inventory.Query) ([]*inventory.Seen, error)

	// Seen returns what is known about an identity; nil if no record names it.
	Seen(ctx context.Context, id string) (*inventory.Seen, error)

	// Uses returns which entitlements identities used, by identity and entitlement.
	Uses(ctx context.Context, ids ...string) (map[string]map[string]*inventory.Use, error)

	// PolicyUses returns how policies were used, by id, and EntitlementUses how entitlements
	// were, by name.
	PolicyUses(ctx context.Context) (map[string]*inventory.Use, error)
	EntitlementUses(ctx context.Context) (map[string]*inventory.Use, error)
}

// A Use is how a permission was used, as far as the log knows.
type Use struct {
	Known       bool
	Last        time.Time // zero: never
	Count       int       // of credentials
	Votes       int       // of a membership: decisions on requests of others
	UnusedParts []string  // that no one used
}

func (u *Use) add(last time.Time, n int) {
	if u.Known = true; last.After(u.Last) {
		u.Last = last
	}
	u.Count += n
}

// use returns how a permission was used.
func (m *Manager) use(ctx context.Context, p *broker.Permission) (u Use, err error) {
	if p.Kind == broker.PermissionGrant {
		return m.useOfGrant(ctx, p)
	}
	if m.cfg.Uses == nil {
		return u, nil
	}
	switch p.Kind {
	case broker.PermissionPermit:
		return m.useOfPermit(ctx, p)
	case broker.PermissionMember:
		return m.useOfMember(ctx, p)
	}
	return m.useBelow(ctx, p)
}

func (m *Manager) useOfPermit(ctx context.Context, p *broker.Permission) (u Use, err error) {
	policies, err := m.cfg.Uses.PolicyUses(ctx)
	if err != nil {
		return u, err
	}
	u.Known = true
	if of := policies[p.Name]; of != nil {
		u.add(of.Last(), of.Issued.N)
	}
	entitlements, err := m.cfg.Uses.EntitlementUses(ctx)
	if err != nil {
		return u, err
	}
	used := map[string]bool{}
	for _, name := range p.Covers {
		if of := entitlements[name]; of != nil {
			for scope := range of.Scopes.All() {
				used[scope] = true
			}
		}
	}
	u.UnusedParts = slices.DeleteFunc(slices.Clone(p.Parts), func(part string) bool { return used[part] })
	return u, nil
}

// useOfMember counts what the member did as a member: decisions for the group, and
// credentials by the permits for it.
func (m *Manager) useOfMember(ctx context.Context, p *broker.Permission) (u Use, err error) {
	group, member, _ := strings.Cut(p.Name, " ")
	if strings.HasPrefix(member, "claim:") {
		return u, nil // whom it admits is not known
	}
	seen, err := m.cfg.Uses.Seen(ctx, member)
	if err != nil {
		return u, err
	}
	u.Known = true
	if seen != nil {
		votes := seen.Votes.Get(group)
		u.add(votes.Last, 0)
		u.Votes = votes.N
	}
	uses, err := m.cfg.Uses.Uses(ctx, member)
	if err != nil {
		return u, err
	}
	for _, of := range uses[member] {
		for _, id := range p.Policies {
			by := of.Policies.Get(id)
			u.add(by.Last(), by.Issued.N)
		}
	}
	return u, nil
}

// maxSeen bounds the identities whose use is summed up for one item.
const maxSeen = 500

// useBelow sums up what the workloads at and below the paths of a permission did.
func (m *Manager) useBelow(ctx context.Context, p *broker.Permission) (u Use, err error) {
	var ids []string
	for _, path := range p.Subjects.Paths {
		seen, err := m.cfg.Uses.Seen(ctx, path)
		if err != nil {
			return u, err
		}
		below, err := m.cfg.Uses.Identities(ctx, inventory.Query{After: path + "/", Until: path + "0", Limit: maxSeen})
		if err != nil {
			return u, err
		}
		if seen != nil {
			below = append(below, seen)
		}
		for _, s := range below {
			u.add(s.Issued.Last, s.Issued.N)
			ids = append(ids, s.ID)
		}
	}
	u.Known = true
	if p.Kind != broker.PermissionSupplier || len(ids) == 0 {
		if p.Kind == broker.PermissionSupplier {
			u.UnusedParts = p.Parts
		}
		return u, nil
	}
	uses, err := m.cfg.Uses.Uses(ctx, ids[:min(len(ids), maxSeen)]...)
	if err != nil {
		return u, err
	}
	used := map[string]bool{}
	for _, by := range uses {
		for entitlement := range by {
			used[entitlement] = true
		}
	}
	u.UnusedParts = slices.DeleteFunc(slices.Clone(p.Parts), func(part string) bool { return used[part] })
	return u, nil
}

// useOfGrant returns when a credential was last collected with a grant.
func (m *Manager) useOfGrant(ctx context.Context, p *broker.Permission) (u Use, err error) {
	id, err := broker.ParseRequestID(p.Name)
	if err != nil {
		return u, err
	}
	err = m.cfg.Store.View(ctx, func(tx broker.Tx) error {
		r, err := broker.Get[*broker.Request](tx, id)
		if err != nil || r.FirstLease.IsZero() {
			return err
		}
		lease := r.FirstLease
		if newer, err := broker.Get[*broker.Collected](tx, broker.CollectedKey(id)); err == nil {
			lease = newer.Last
		}
		l, err := broker.Get[*broker.Lease](tx, lease)
		if err == nil {
			u.add(l.Opened, 0)
		}
		return err
	})
	u.Known = true
	return u, ignoreNotFound(err)
}
