package server

import (
	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// toActor returns the subject of a token, and who acts for it; nil for a token of the holder's
// own.
func toActor(l *broker.Lease) (subject string, act *api.Actor) {
	if l.Subject == "" {
		return l.Holder, nil
	}
	for _, id := range l.Actors {
		act = &api.Actor{Subject: id, Actor: act}
	}
	return l.Subject, &api.Actor{Subject: l.Holder, Actor: act}
}

// setDelegation adds on whose behalf a request is made.
func setDelegation(out *api.Request, d *broker.Delegation) {
	if d != nil {
		out.OnBehalfOf, out.Actors, out.Parent = d.Subject.ID, d.Actors, d.Parent.String()
		decided := toDecision(d.Decision)
		out.Delegated = &decided
	}
}
