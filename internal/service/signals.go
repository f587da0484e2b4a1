package service

import (
	"fmt"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/signal"
	"accessbroker.internal/internal/config"
	"accessbroker.internal/server"
	"accessbroker.internal/signals"
	"accessbroker.internal/store"
)

// openSignals creates the receivers of shared security signals.
func (s *Service) openSignals() error {
	rules := map[string]signal.Rule{}
	for _, t := range s.config.Transmitters {
		rules[t.Name] = signal.Rule{
			Provider: t.Subjects.Provider, StreamID: t.Verification.StreamID, MaxAge: t.MaxAge, Verified: t.Verification.Endpoint != "",
			MostPercent: t.MostPercent, Always: t.Always, Page: t.Page,
		}
	}
	s.signals = signal.New(signal.Config{
		Store: s.store, Reader: store.NewSignals(s.store), Broker: s.broker, Sessions: s.sessions, Rules: rules, Log: s.log,
	})
	if len(rules) == 0 {
		return nil
	}
	s.loops = append(s.loops, s.alone("signals", nil, s.signals.Run))
	for _, t := range s.config.Transmitters {
		if err := s.openTransmitter(t); err != nil {
			return fmt.Errorf("signals %s: %w", t.Name, err)
		}
	}
	return nil
}

func (s *Service) openTransmitter(t config.Transmitter) error {
	cfg, err := t.Open()
	if err != nil {
		return err
	}
	cfg.Log, cfg.Apply, cfg.Polled, cfg.Expect = s.log, s.signals.Apply, s.signals.Heard, s.signals.Expect
	cfg.Observe = func(name string, kind signal.Kind, outcome signal.Outcome) {
		s.metrics.Signalled(name, string(kind), string(outcome))
	}
	made := signals.New(cfg)
	s.transmitters = append(s.transmitters, made)
	if cfg.Poll != nil {
		s.loops = append(s.loops, s.alone("signals/"+t.Name+"/poll", nil, made.RunPoll))
	}
	if cfg.Verification != nil {
		s.loops = append(s.loops, s.alone("signals/"+t.Name+"/verification", nil, made.RunVerification))
	}
	for _, kind := range signal.Kinds {
		for _, outcome := range []signal.Outcome{signal.Applied, signal.Held, signal.Replayed, signal.UnknownSubject} {
			s.metrics.ExpectSignal(t.Name, string(kind), string(outcome))
		}
	}
	for _, outcome := range []signal.Outcome{signal.Malformed, signal.BadSignature, signal.ForeignIssuer, signal.ForeignAudience, signal.Old, signal.Future, signal.Unauthenticated} {
		s.metrics.ExpectSignal(t.Name, "", string(outcome))
	}
	return nil
}

// signalSources adds the rules for the transmitters as sources of facts. A transmitter
// states only ends, so the people of its provider have no access while it is silent for too
// long.
func (s *Service) signalSources(rules map[string]broker.SourceRule) {
	for _, t := range s.config.Transmitters {
		onStale := broker.OnStaleEnd
		if t.Hold {
			onStale = broker.OnStaleHold
		}
		provider := t.Subjects.Provider
		rules[signal.Source(t.Name)] = broker.SourceRule{
			StaleAfter: t.StaleAfter, OnStale: onStale, Silence: true,
			Watches: func(k broker.StandingKey) bool {
				of, _, err := broker.ParsePerson(k.Name)
				return k.Kind == broker.FactPerson && err == nil && of == provider
			},
		}
	}
}

// signalHandlers is where transmitters push events.
func (s *Service) signalHandlers() []server.Handler {
	if len(s.transmitters) == 0 {
		return nil
	}
	return []server.Handler{{Pattern: signals.Path, Audience: server.API, Open: true, Handler: signals.Handler(s.transmitters)}}
}

// checkPages returns an error if a transmitter's events would notify a group that does not
// exist.
func checkPages(c *config.Config, rules *broker.Rules) error {
	for _, t := range c.Transmitters {
		if _, ok := rules.Groups[t.Page]; t.Page != "" && !ok {
			return fmt.Errorf("signals.%s.page: there is no group %q in groups.yaml", t.Name, t.Page)
		}
	}
	return nil
}

// signalGauges describes the transmitters for metrics.
func (s *Service) signalGauges() (list []server.SignalGauge) {
	if s.signals == nil {
		return nil
	}
	for _, g := range s.signals.Gauges() {
		age := -1.0
		if !g.Heard.IsZero() {
			age = time.Since(g.Heard).Seconds()
		}
		list = append(list, server.SignalGauge{Transmitter: g.Transmitter, Held: float64(g.Holding), Silence: age})
	}
	return list
}
