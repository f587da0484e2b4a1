package broker

import (
	"context"
	"errors"
	"time"
)

// FileSource is the source of the facts in suppliers.yaml, people.yaml and the marks of
// workloads, which are part of the rules. It must know every supplier: one that the rules no longer have gets nothing.
const FileSource = "file"

// Details of the facts in files.
const (
	DetailSponsor     = "sponsor"
	DetailContractEnd = "contract_end" // as suppliers.yaml has it; Until may be later
)

// CauseRemoved is the cause of a supplier's end that suppliers.yaml no longer has.
const CauseRemoved = "removed"

// governedByFile reports whether FileSource must know a subject.
func governedByFile(k StandingKey) bool { return k.Kind == FactSupplier }

// SupplierKey names the facts about a supplier.
func SupplierKey(name string) StandingKey { return StandingKey{FactSupplier, name} }

// StateRules states what the files of the rules in force state: suppliers with their
// contracts, and the ends of people and of marks. The broker calls it when rules come into force,
// also at the start, because it may have been down when a file changed. If another process
// has put other rules in force, StateRules does nothing.
func (f *Facts) StateRules(ctx context.Context, caller Caller) error {
	f.stating.Lock() // the latest rules are stated last
	defer f.stating.Unlock()
	rules := f.b.rules.Load()
	stating := &Facts{b: f.b, wake: f.wake, governing: f.governing, watching: f.watching, under: rules}
	err := stating.stateRules(ctx, caller, rules)
	if stating.own.Load() {
		f.hurryOwn()
	}
	if errors.Is(err, errSuperseded) {
		return nil
	}
	return err
}

func (f *Facts) stateRules(ctx context.Context, caller Caller, rules *Rules) error {
	var reports []Report
	for _, s := range rules.Suppliers.All() {
		fact, err := f.contractOf(ctx, s)
		if err != nil {
			return err
		}
		reports = append(reports, Report{SupplierKey(s.Name), fact})
	}
	for person, end := range rules.PersonEnds {
		fact := Fact{Source: FileSource, State: FactActive, Until: end.Ends}
		if end.Sponsor != "" {
			fact.Details = map[string]string{DetailSponsor: end.Sponsor}
		}
		reports = append(reports, Report{StandingKey{FactPerson, person}, fact})
	}
	marks := map[string]bool{}
	for _, l := range rules.Labels {
		if !l.Ends.IsZero() {
			marks[l.Under] = true
			reports = append(reports, Report{MarkKey(l.Under), Fact{Source: FileSource, State: FactActive, Until: l.Ends}})
		}
	}
	stated := func(kind FactKind, known func(name string) bool) error {
		return f.forgetUnless(ctx, caller, kind, known)
	}
	return errors.Join(f.ReportAll(ctx, caller, reports), f.withdrawSuppliers(ctx, caller, rules),
		stated(FactPerson, func(name string) bool { _, known := rules.PersonEnds[name]; return known }),
		stated(FactMark, func(name string) bool { return marks[name] }))
}

// contractOf returns the fact about a supplier: its contract as suppliers.yaml has it, or
// with an approved extension of just this contract.
func (f *Facts) contractOf(ctx context.Context, s *Supplier) (Fact, error) {
	fact := Fact{
		Source: FileSource, State: FactActive, From: s.Starts, Until: s.Ends,
		Details: map[string]string{DetailSponsor: s.Sponsor, DetailContractEnd: s.Ends.Format(time.RFC3339)},
	}
	var x *Extension
	err := f.b.cfg.Store.View(ctx, func(tx Tx) (err error) {
		x, err = Get[*Extension](tx, ExtensionKey(s.Name))
		return err
	})
	if err == nil && x.Extends(s) {
		fact.Until = x.Until
	}
	return fact, Unavailable(ignoreNotFound(err))
}

// withdrawSuppliers ends the suppliers that the rules no longer have.
func (f *Facts) withdrawSuppliers(ctx context.Context, caller Caller, rules *Rules) error {
	return f.eachStated(ctx, FactSupplier, func(s *Standing) error {
		if rules.Suppliers.Named(s.Name) != nil {
			return nil
		}
		return f.Report(ctx, caller, s.StandingKey, Fact{Source: FileSource, State: FactWithdrawn, Cause: CauseRemoved})
	})
}

// forgetUnless forgets what the files stated about subjects of which they no longer state
// anything.
func (f *Facts) forgetUnless(ctx context.Context, caller Caller, kind FactKind, known func(name string) bool) error {
	return f.eachStated(ctx, kind, func(s *Standing) error {
		if known(s.Name) {
			return nil
		}
		return f.Forget(ctx, caller, s.StandingKey, FileSource)
	})
}

// eachStated calls do for each standing of a kind about which the files stated something.
func (f *Facts) eachStated(ctx context.Context, kind FactKind, do func(*Standing) error) error {
	for after := ""; ; {
		page, err := f.List(ctx, kind, after, pageMax)
		if err != nil || len(page) == 0 {
			return err
		}
		for _, s := range page {
			if s.Find(FileSource) == nil {
				continue
			}
			if err := do(s); err != nil {
				return err
			}
		}
		after = page[len(page)-1].Name
	}
}

// extended returns the ends of contracts that are later than in the rules, because an
// extension was approved; nil if there are none.
func (b *Broker) extended(ctx context.Context, rules *Rules, suppliers []string) (ends map[string]time.Time) {
	for _, name := range suppliers {
		s := rules.Suppliers.Named(name)
		standing, err := b.Facts.read(ctx, SupplierKey(name))
		if s == nil || err != nil {
			continue // without an extension, which denies
		}
		fact := standing.Find(FileSource)
		if fact == nil || !fact.Until.After(s.Ends) || fact.Details[DetailContractEnd] != s.Ends.Format(time.RFC3339) {
			continue
		}
		if ends == nil {
			ends = map[string]time.Time{}
		}
		ends[name] = fact.Until
	}
	return ends
}

// ClaimSource returns the source of the facts that an OpenID provider claims.
func ClaimSource(provider string) string { return "claim:" + provider }

// StateClaims states what a provider has just claimed about a person: the end of their
// access, and their sponsor. A provider without such claims states nothing.
func (f *Facts) StateClaims(ctx context.Context, who Identity, now time.Time) error {
	p := who.Person
	if p == nil || !p.StatesEnd {
		return nil
	}
	fact := Fact{Source: ClaimSource(p.Provider), State: FactActive, Until: p.Ends}
	if p.Sponsor != "" {
		fact.Details = map[string]string{DetailSponsor: p.Sponsor}
	}
	return f.Report(ctx, Caller{At: now}, StandingKey{FactPerson, who.ID}, fact)
}
