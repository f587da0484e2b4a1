package supplier

import (
	"cmp"
	"context"
	"strings"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// MaxExtension is how far an extension may move the end of a contract. It bridges the time
// until suppliers.yaml has the new end.
const MaxExtension = 90 * 24 * time.Hour

// MaxReason is the maximum length of a reason or a comment in bytes.
const MaxReason = 2000

// ExtendersOf returns the group that decides on extensions of a contract: the one that
// suppliers.yaml names, or the sponsoring group, or the assessors; empty if there is none.
func ExtendersOf(s *broker.Supplier) string {
	return cmp.Or(s.Extenders, s.SponsorGroup(), s.Assessors)
}

// checkSponsor refuses everyone but the supplier's sponsor.
func (m *Manager) checkSponsor(caller broker.Caller, rules *broker.Rules, s *broker.Supplier) error {
	sponsors := rules.People.Same(caller.Subject.ID, s.Sponsor)
	if group := s.SponsorGroup(); group != "" {
		var err error
		if sponsors, err = m.cfg.Broker.Facts.IsMember(caller, rules, group); err != nil {
			return err
		}
	}
	switch {
	case !sponsors:
		return refuse(broker.ErrNotApprover, "only the sponsor of a supplier asks for more time: "+s.Sponsor)
	case rules.IsOf(s, caller.Subject):
		return refuse(broker.ErrOwnRequest, "you belong to this supplier")
	}
	return nil
}

// checkExtender refuses a person who may not decide on an extension: never the one who
// asked for it, with any account, and none of the supplier's people.
func (m *Manager) checkExtender(caller broker.Caller, rules *broker.Rules, s *broker.Supplier, x *broker.Extension) error {
	group := ExtendersOf(s)
	if group == "" {
		return refuse(broker.ErrNobodyCanApprove, "no group decides on extensions of this contract: set extension.by in suppliers.yaml")
	}
	member, err := m.cfg.Broker.Facts.IsMember(caller, rules, group)
	switch {
	case err != nil:
		return err
	case rules.People.Same(caller.Subject.ID, x.AskedBy) || rules.IsOf(s, caller.Subject):
		return refuse(broker.ErrOwnRequest, "another person must decide on this extension")
	case !member:
		return refuse(broker.ErrNotApprover, "you are not in the group that decides on extensions of this contract: "+group)
	}
	return nil
}

// AskExtension files a sponsor's request to let a contract run until a time (POST
// /v1/suppliers/{name}/extensions). Another person must approve it before the contract ends.
func (m *Manager) AskExtension(ctx context.Context, caller broker.Caller, supplier string, until time.Time, reason string) (x *broker.Extension, err error) {
	err = m.cfg.Broker.Facts.Retry(func() (err error) {
		x, err = m.askOnce(ctx, caller, supplier, until, reason)
		return err
	})
	return x, err
}

func (m *Manager) askOnce(ctx context.Context, caller broker.Caller, supplier string, until time.Time, reason string) (*broker.Extension, error) {
	s, ground, err := m.open(ctx, &caller, supplier)
	if err != nil {
		return nil, err
	}
	if err := m.checkSponsor(caller, ground.Rules, s); err != nil {
		return nil, err
	}
	reason = strings.TrimSpace(reason)
	if err := broker.CheckText(broker.ErrInvalidRequest, "reason", reason, MaxReason); err != nil {
		return nil, err
	}
	switch {
	case reason == "":
		return nil, refuse(broker.ErrJustificationRequired, "state in reason why the contract runs longer")
	case !until.After(s.Ends) || until.Sub(s.Ends) > MaxExtension || until.Nanosecond() != 0:
		return nil, refuse(broker.ErrInvalidTTL, "until must be after the end of the contract, "+s.Ends.Format(time.RFC3339)+", by at most "+broker.FormatDays(MaxExtension)+": longer times belong into suppliers.yaml")
	case ExtendersOf(s) == "":
		return nil, refuse(broker.ErrNobodyCanApprove, "no group decides on extensions of this contract: set extension.by in suppliers.yaml")
	}
	x := &broker.Extension{
		Supplier: broker.ExtensionKey(s.Name), ID: broker.NewExtensionID(caller.At), From: s.Ends, Until: until.UTC(), Reason: reason,
		Salts: map[string][16]byte{"reason": audit.NewSalt()}, AskedBy: caller.Subject.ID, AskedAt: caller.At, Decision: broker.ExtensionPending,
	}
	opening := audit.Opening{Salt: x.Salts["reason"], Text: reason}
	record := audit.Record{
		Kind: audit.ExtensionRequested, Caller: caller.Actor.Party(), Openings: map[string]audit.Opening{"reason": opening}, Supplier: extensionFacts(x, s, opening),
	}
	err = m.write(ctx, append(ground.Reads(), x.Supplier), record, func(tx broker.Tx) error {
		if err := ground.Check(tx); err != nil {
			return err
		}
		before, err := broker.Get[*broker.Extension](tx, x.Supplier)
		if err != nil && !isNotFound(err) {
			return err
		}
		if err == nil && before.From.Equal(s.Ends) && before.Decision == broker.ExtensionPending {
			return refuse(broker.ErrAlreadyVoted, "an extension of this contract waits for a decision already")
		}
		if err == nil && before.Extends(s) && !x.Until.After(before.Until) {
			return refuse(broker.ErrInvalidTTL, "the contract was extended until "+before.Until.Format(time.RFC3339)+" already")
		}
		tx.Put(x)
		broker.Announce(tx, ground.Rules, broker.Announcement{
			Event: broker.NoticeExtension, Title: "Extension of the contract with " + s.DisplayName(), Page: page(s.Name),
			Text: x.AskedBy + " asks to let the contract with " + s.DisplayName() + " run until " + day(x.Until) + ". Another person must decide before it ends at " + day(s.Ends) + ".",
		}, []string{ExtendersOf(s)}, nil, caller.At)
		return nil
	})
	return x, err
}

func extensionFacts(x *broker.Extension, s *broker.Supplier, reason audit.Opening) *audit.SupplierFacts {
	return &audit.SupplierFacts{Name: s.Name, ID: x.ID, Digest: s.Digest, From: x.From, Until: x.Until, Reason: reason.Commitment()}
}

// open returns a supplier, and the ground for a person's decision about it.
func (m *Manager) open(ctx context.Context, caller *broker.Caller, supplier string) (*broker.Supplier, *broker.Ground, error) {
	if err := caller.RequireSession(); err != nil {
		return nil, nil, err
	}
	ground, err := m.cfg.Broker.Facts.Ground(ctx, caller)
	if err != nil {
		return nil, nil, err
	}
	s := ground.Rules.Suppliers.Named(supplier)
	if s == nil {
		return nil, nil, errNoSupplier
	}
	return s, ground, nil
}

// DecideExtension approves or denies an extension (POST
// /v1/suppliers/{name}/extensions/{id}). A contract that has ended is not revived: its
// access is gone, and suppliers.yaml is the place to begin again.
func (m *Manager) DecideExtension(ctx context.Context, caller broker.Caller, supplier, id string, approve bool, comment string) (x *broker.Extension, err error) {
	began := time.Now()
	err = m.cfg.Broker.Facts.Retry(func() (err error) {
		x, err = m.decideOnce(ctx, caller, supplier, id, approve, comment, func() time.Time { return caller.At.Add(time.Since(began)) })
		return err
	})
	if err != nil || !approve {
		return x, err
	}
	// The approval is durable. The fact follows it; if this fails, the broker states it again.
	return x, m.cfg.Broker.Facts.StateRules(ctx, broker.Caller{At: caller.At})
}

func (m *Manager) decideOnce(ctx context.Context, caller broker.Caller, supplier, id string, approve bool, comment string, now func() time.Time) (*broker.Extension, error) {
	s, ground, err := m.open(ctx, &caller, supplier)
	if err != nil {
		return nil, err
	}
	x, err := m.extension(ctx, s, id)
	if err != nil {
		return nil, err
	}
	if err := m.checkExtender(caller, ground.Rules, s, x); err != nil {
		return nil, err
	}
	comment = strings.TrimSpace(comment)
	if err := broker.CheckText(broker.ErrInvalidRequest, "comment", comment, MaxReason); err != nil {
		return nil, err
	}
	if !approve && comment == "" {
		return nil, refuse(broker.ErrCommentRequired, "state in comment why you deny it: the sponsor reads it")
	}
	x.Decision, x.DecidedBy, x.DecidedAt, x.Comment = broker.ExtensionDenied, caller.Subject.ID, caller.At, comment
	record := audit.Record{Kind: audit.ExtensionDenied, Caller: caller.Actor.Party()}
	if approve {
		x.Decision, record.Kind = broker.ExtensionApproved, audit.ExtensionApproved
	}
	var opening audit.Opening
	if comment != "" {
		opening = audit.Opening{Salt: audit.NewSalt(), Text: comment}
		x.Salts["comment"], record.Openings = opening.Salt, map[string]audit.Opening{"reason": opening}
	}
	record.Supplier = extensionFacts(x, s, opening)
	if comment == "" {
		record.Supplier.Reason = audit.Digest{}
	}
	err = m.write(ctx, append(ground.Reads(), x.Supplier, broker.SupplierKey(s.Name)), record, func(tx broker.Tx) error {
		return m.apply(tx, ground, s, x, now())
	})
	return x, err
}

// apply writes the decision on an extension, unless the contract has ended: then the end
// won, whatever the decision.
func (m *Manager) apply(tx broker.Tx, ground *broker.Ground, s *broker.Supplier, x *broker.Extension, now time.Time) error {
	if err := ground.Check(tx); err != nil {
		return err
	}
	stored, err := broker.Get[*broker.Extension](tx, x.Supplier)
	if err != nil {
		return err
	}
	contract, err := broker.Get[*broker.Standing](tx, broker.SupplierKey(s.Name))
	if err != nil {
		return err
	}
	switch {
	case stored.ID != x.ID || stored.Decision != broker.ExtensionPending:
		return refuse(broker.ErrNotPending, "this extension was decided already")
	case x.Decision == broker.ExtensionApproved && (!contract.Ended.IsZero() || !contractHolds(contract, now)):
		return refuse(broker.ErrFactEnded, "the contract has ended: begin it again in suppliers.yaml")
	}
	tx.Put(x)
	broker.Announce(tx, ground.Rules, broker.Announcement{
		Event: broker.NoticeExtension, Title: "Extension of the contract with " + s.DisplayName() + " " + string(x.Decision), Page: page(s.Name),
		Text: x.DecidedBy + " decided on the extension of the contract with " + s.DisplayName() + " until " + day(x.Until) + ": " + string(x.Decision) + ".",
	}, sponsorGroups(s), sponsorPeople(s), now)
	return nil
}

// contractHolds reports whether the time of a contract is not over at now.
func contractHolds(s *broker.Standing, now time.Time) bool {
	fact := s.Find(broker.FileSource)
	return fact != nil && fact.State == broker.FactActive && now.Before(fact.Until)
}

// extension returns a pending extension of the supplier's present contract.
func (m *Manager) extension(ctx context.Context, s *broker.Supplier, id string) (x *broker.Extension, err error) {
	err = m.cfg.Store.View(ctx, func(tx broker.Tx) (err error) {
		x, err = broker.Get[*broker.Extension](tx, broker.ExtensionKey(s.Name))
		return err
	})
	switch {
	case isNotFound(err) || err == nil && (x.ID != id || !x.From.Equal(s.Ends)):
		return nil, refuse(broker.ErrNotFound, "there is no such extension of this contract")
	case err != nil:
		return nil, broker.Unavailable(err)
	case x.Decision != broker.ExtensionPending:
		return nil, refuse(broker.ErrNotPending, "this extension was decided already")
	}
	return x, nil
}

func sponsorGroups(s *broker.Supplier) []string {
	if group := s.SponsorGroup(); group != "" {
		return []string{group}
	}
	return nil
}

func sponsorPeople(s *broker.Supplier) []string {
	if s.SponsorGroup() != "" {
		return nil
	}
	return []string{s.Sponsor}
}

// page returns the path of a supplier's page.
func page(supplier string) string { return "/ui/assessments/" + supplier }

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }
