package service

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"accessbroker.internal/broker"
	"accessbroker.internal/server"
	"accessbroker.internal/store"
	"accessbroker.internal/tickets"
)

// openTickets creates the ticket systems of the operator's file.
func (s *Service) openTickets() error {
	var list []*tickets.Tracker
	for _, name := range slices.Sorted(maps.Keys(s.config.Trackers)) {
		c := s.config.Trackers[name]
		t, err := c.Open()
		if err != nil {
			return fmt.Errorf("tickets %s: %w", name, err)
		}
		list = append(list, t)
	}
	s.tickets = tickets.NewWatcher(tickets.WatcherConfig{
		Trackers: list, Log: s.log, Duties: store.DutiesOf(s.store), Facts: func() tickets.Facts { return s.broker.Facts },
		Observe: func(o tickets.Observation) { s.metrics.Looked(o.Tracker, o.Outcome) },
	})
	return nil
}

// sources returns the operator's rules for the sources of facts.
func (s *Service) sources() map[string]broker.SourceRule {
	rules := map[string]broker.SourceRule{}
	for name, t := range s.config.Trackers {
		onStale := broker.OnStaleEnd
		if t.Hold {
			onStale = broker.OnStaleHold
		}
		rules[tickets.SourceOf(name)] = broker.SourceRule{
			StaleAfter: t.StaleAfter, OnStale: onStale,
			Governs: func(k broker.StandingKey) bool {
				return k.Kind == broker.FactTicket && strings.HasPrefix(k.Name, name+"/")
			},
		}
	}
	s.signalSources(rules)
	s.scimSources(rules)
	return rules
}

// ticketHooks is where trackers send their webhooks.
func (s *Service) ticketHooks() []server.Handler {
	if len(s.config.Trackers) == 0 {
		return nil
	}
	return []server.Handler{{Pattern: tickets.HookPath, Audience: server.API, Open: true, Handler: s.tickets}}
}
