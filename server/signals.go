package server

import (
	"cmp"
	"errors"
	"net/http"
	"strconv"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/signal"
	"accessbroker.internal/server/ui"
)

// listTransmitters lists the transmitters of shared security signals (GET /v1/signals).
func (s *Server) listTransmitters(c *call) (reply, error) {
	list, err := s.transmitters(c)
	if err != nil {
		return reply{}, err
	}
	return ok(api.Transmitters{Transmitters: list})
}

func (s *Server) transmitters(c *call) ([]api.Transmitter, error) {
	found, err := s.cfg.Signals.List(c.r.Context(), c.caller())
	if err != nil {
		return nil, err
	}
	list := make([]api.Transmitter, len(found))
	for i, t := range found {
		list[i] = toTransmitter(t)
	}
	return list, nil
}

func toTransmitter(t signal.Status) api.Transmitter {
	return api.Transmitter{Name: t.Transmitter, Provider: t.Provider, Stream: t.Stream, HeardAt: utc(t.Heard), Held: t.Holding, HeldSince: utc(t.Since)}
}

// heldEvents returns the events of a transmitter that wait for a decision.
func (s *Server) heldEvents(c *call) (reply, error) {
	p, err := s.cfg.Signals.Preview(c.r.Context(), c.caller(), c.r.PathValue("transmitter"))
	if err != nil {
		return reply{}, err
	}
	return ok(toHeldEvents(p))
}

func toHeldEvents(p *signal.Preview) api.HeldEvents {
	out := api.HeldEvents{
		Transmitter: toTransmitter(p.Status), Events: p.Events, Through: p.Through, Digest: p.Digest.String(), People: p.People, Leases: p.Leases, Own: p.Own,
		ByKind: map[string]int{}, First: []api.HeldEvent{},
	}
	for kind, n := range p.ByKind {
		out.ByKind[string(kind)] = n
	}
	for _, h := range p.First {
		out.First = append(out.First, api.HeldEvent{
			Number: h.Number, Kind: h.Kind, Person: cmp.Or(h.Account, h.Email), Session: h.SID, Reason: h.Reason, HappenedAt: utc(h.At), HeldAt: utc(h.Held),
		})
	}
	return out
}

// decideEvents releases or discards the events that a person saw.
func (s *Server) decideEvents(c *call, body api.HeldDecision) (reply, error) {
	if body.Decision != api.ReleaseEvents && body.Decision != api.DiscardEvents {
		return reply{}, refuse(broker.ErrInvalidRequest, "decision: choose release or discard")
	}
	d := signal.Decision{Release: body.Decision == api.ReleaseEvents, Through: body.Through, Reason: body.Reason}
	if d.Digest.UnmarshalText([]byte(body.Digest)) != nil || body.Through < 1 {
		return reply{}, refuse(broker.ErrInvalidRequest, "send through and digest of the held events as they were shown")
	}
	c.extend(signal.DecideDeadline)
	p, err := s.cfg.Signals.Decide(c.r.Context(), c.caller(), c.r.PathValue("transmitter"), d)
	if err != nil {
		return reply{}, err
	}
	return ok(toHeldEvents(p))
}

// clearStatement forgets what a transmitter stated about a person.
func (s *Server) clearStatement(c *call, body api.Clearing) (reply, error) {
	if _, _, err := broker.ParsePerson(body.Person); err != nil {
		return reply{}, refuse(broker.ErrInvalidRequest, "person: "+err.Error())
	}
	return reply{status: http.StatusNoContent}, s.cfg.Signals.Clear(c.r.Context(), c.caller(), c.r.PathValue("transmitter"), body.Person)
}

// signalsData is the page with the transmitters.
type signalsData struct {
	Transmitters []api.Transmitter
	Done         string
}

func (s *Server) signalsPage(c *call) (reply, error) {
	list, err := s.transmitters(c)
	if err != nil {
		return reply{}, err
	}
	done := map[string]string{"released": "The events were released.", "discarded": "The events were discarded."}[c.r.URL.Query().Get("done")]
	return c.page("signals", "Security events", "kill", signalsData{Transmitters: list, Done: done})
}

// heldData is the page on which a person decides about held events.
type heldData struct {
	api.HeldEvents
	Reason string
	Fault  string
	Stale  bool
}

// Unlisted returns how many of the events the page does not list.
func (d heldData) Unlisted() int { return d.Events - len(d.First) }

func (s *Server) heldPage(c *call) (reply, error) { return s.showHeld(c, http.StatusOK, heldData{}) }

func (s *Server) showHeld(c *call, status int, d heldData) (reply, error) {
	name := c.r.PathValue("transmitter")
	p, err := s.cfg.Signals.Preview(c.r.Context(), c.caller(), name)
	if err != nil {
		return reply{}, err
	}
	d.HeldEvents = toHeldEvents(p)
	return c.pageOf(status, ui.Page{Name: "signals-held", Title: "Security events of " + name, Tab: "kill", Data: d})
}

// decideHeld decides about the events that the page showed. A refusal shows the page
// again.
func (s *Server) decideHeld(c *call) (reply, error) {
	d := signal.Decision{Release: c.form.get("do") == api.ReleaseEvents, Reason: c.text("reason")}
	again := heldData{Reason: d.Reason}
	through, err := strconv.ParseInt(c.form.get("through"), 10, 64)
	var seen audit.Digest
	if err != nil || seen.UnmarshalText([]byte(c.form.get("digest"))) != nil || !d.Release && c.form.get("do") != api.DiscardEvents {
		return reply{}, refuse(broker.ErrInvalidRequest, "the form is not complete: open the page again")
	}
	d.Through, d.Digest = through, seen
	c.extend(signal.DecideDeadline)
	_, err = s.cfg.Signals.Decide(c.r.Context(), c.caller(), c.r.PathValue("transmitter"), d)
	switch {
	case err == nil && d.Release:
		return c.redirect(s.to("/ui/signals?done=released"))
	case err == nil:
		return c.redirect(s.to("/ui/signals?done=discarded"))
	case errors.Is(err, broker.ErrPreviewStale):
		again.Stale = true
	case errors.Is(err, broker.ErrJustificationRequired), errors.Is(err, broker.ErrInvalidRequest):
		again.Fault = c.problemOf(err).Detail
	default:
		return reply{}, err
	}
	answer, rendering := s.showHeld(c, errorRowOf(err).status, again)
	answer.code = c.problemOf(err).Code
	return answer, rendering
}
