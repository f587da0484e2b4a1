package supplier

import (
	"context"
	"errors"
	"fmt"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// noticeDays are how many days before the end of a contract its sponsor is notified, the
// latest notice last.
var noticeDays = []int{30, 7, 1}

const passEvery = time.Minute

// Run notifies sponsors of ends and finishes what an interruption left of assessments, until
// ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	tick := time.NewTicker(passEvery)
	defer tick.Stop()
	for {
		if err := m.Pass(ctx, time.Now()); err != nil && ctx.Err() == nil {
			m.cfg.Log.ErrorContext(ctx, "notifying the sponsors of suppliers", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Pass makes one pass at now. It may be repeated, also by several processes: each notice is
// sent once.
func (m *Manager) Pass(ctx context.Context, now time.Time) error {
	rules := m.cfg.Broker.Rules()
	var failed []error
	for _, s := range rules.Suppliers.All() {
		failed = append(failed, m.settle(ctx, broker.AssessmentKey(s.Name), now), m.notifySponsor(ctx, rules, s, now))
	}
	return errors.Join(failed...)
}

// notifySponsor notifies the sponsor if the contract ends soon. After a while without the
// broker, or without the supplier, only the latest notice is sent.
func (m *Manager) notifySponsor(ctx context.Context, rules *broker.Rules, s *broker.Supplier, now time.Time) error {
	standing, err := m.cfg.Broker.Facts.Standing(ctx, broker.SupplierKey(s.Name))
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	fact := standing.Find(broker.FileSource)
	if fact == nil || !contractHolds(standing, now) {
		return nil
	}
	due := 0
	for _, days := range noticeDays {
		if !now.Before(fact.Until.AddDate(0, 0, -days)) {
			due = days
		}
	}
	if due == 0 {
		return nil
	}
	record := audit.Record{Kind: audit.SupplierEnding, Supplier: &audit.SupplierFacts{Name: s.Name, Digest: s.Digest, Until: fact.Until}}
	key := broker.SponsorKey(s.Name)
	err = m.write(ctx, []broker.Key{key}, record, func(tx broker.Tx) error {
		sent, err := broker.Get[*broker.SponsorNotices](tx, key)
		if err != nil && !isNotFound(err) {
			return err
		}
		if err == nil && sent.Ends.Equal(fact.Until) && sent.Sent <= due {
			return broker.ErrUnchanged
		}
		tx.Put(&broker.SponsorNotices{Supplier: key, Ends: fact.Until, Sent: due})
		broker.Announce(tx, rules, ending(s, fact.Until, now), sponsorGroups(s), sponsorPeople(s), now)
		return nil
	})
	if errors.Is(err, broker.ErrUnchanged) {
		return nil
	}
	return err
}

// ending returns the notice to a sponsor.
func ending(s *broker.Supplier, ends, now time.Time) broker.Announcement {
	left := broker.FormatDays(ends.Sub(now).Round(time.Hour))
	if days := int(ends.Sub(now).Hours()/24 + 0.5); days > 1 {
		left = fmt.Sprintf("%d days", days)
	}
	return broker.Announcement{
		Event: broker.NoticeContractEnds, Page: page(s.Name),
		Title: fmt.Sprintf("The contract with %s ends in %s", s.DisplayName(), left),
		Text: fmt.Sprintf("The contract with %s ends at %s. All access of its workloads and people ends then. If it runs longer, change its end in suppliers.yaml, or ask for an extension on this page, which another person must approve.",
			s.DisplayName(), day(ends)),
	}
}
