package service

import (
	"context"
	"errors"
	"strings"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/campaign"
	"accessbroker.internal/store"
)

// openCampaigns creates the access reviews, and closes those whose deadline passed while the
// broker was down, before anything is issued.
func (s *Service) openCampaigns(ctx context.Context) (err error) {
	s.campaigns, err = campaign.New(campaign.Config{
		Store: s.store, Rows: store.NewCampaignRows(s.store), Uses: s.store.Inventory(), Log: s.log, Rules: s.broker.Rules, Ground: s.broker.Facts.Ground, Enforce: s.suspend, May: s.broker.May,
		EndGrant: func(ctx context.Context, caller broker.Caller, id broker.RequestID, reason string) error {
			return broker.EndGrant(ctx, s.broker, caller, id, reason)
		},
		ManagerOf: s.managerOf, Ended: s.hasEnded,
	})
	if err != nil {
		return err
	}
	return s.campaigns.Settle(ctx, time.Now())
}

// standing returns what is known about a person; nil if nothing is.
func (s *Service) standing(person string) *broker.Standing {
	known, err := s.broker.Facts.Standing(context.Background(), broker.StandingKey{Kind: broker.FactPerson, Name: person})
	if err != nil {
		if !errors.Is(err, broker.ErrNotFound) {
			s.log.Error("reading what is known about a person", "person", person, "err", err)
		}
		return nil
	}
	return known
}

// managerOf returns a person's manager as the sources of facts state it; empty: unknown.
func (s *Service) managerOf(person string) string {
	provider, _, _ := strings.Cut(person, "/")
	who := s.broker.Rules().WithLabels(broker.Identity{ID: person, Kind: broker.KindPerson, Person: &broker.Person{Provider: provider}})
	if who.Person.Manager != "" { // as a directory states it
		return who.Person.Manager
	}
	known := s.standing(person)
	if known == nil {
		return ""
	}
	for _, f := range known.Facts {
		if manager := f.Details["manager"]; manager != "" && f.State == broker.FactActive {
			return manager
		}
	}
	return ""
}

// hasEnded reports whether some source states that a person has left.
func (s *Service) hasEnded(person string) bool {
	holds, err := s.broker.Facts.Holds(context.Background(), broker.StandingKey{Kind: broker.FactPerson, Name: person}, time.Now())
	if err != nil {
		s.log.Error("reading what is known about a person", "person", person, "err", err)
		return false // the person's own decision is still refused
	}
	return !holds
}
