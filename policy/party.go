package policy

import (
	"errors"

	"github.com/cedar-policy/cedar-go/types"

	"accessbroker.internal/broker"
)

// party returns the other side of a delegation in a query; nil if there is none.
func party(q *broker.Query) *broker.Identity {
	if q.OnBehalfOf != nil {
		return q.OnBehalfOf
	}
	return q.Actor
}

// setParty sets the entity of the other side of a delegation, and returns the value of the
// context that names it.
func (e *Engine) setParty(ev *evaluation, q *broker.Query) (types.Record, error) {
	who := party(q)
	switch {
	case who == nil:
		return types.Record{}, nil
	case q.OnBehalfOf != nil && q.Actor != nil:
		return types.Record{}, errors.New("the principal can't act for another and have another act for it")
	}
	p := e.principals.find(who)
	if p == nil {
		var err error
		if p, err = e.newPrincipal(*who); err != nil {
			return types.Record{}, err
		}
		e.principals.keep(p)
	}
	ev.party = p.entity
	return types.NewRecord(types.RecordMap{"id": types.String(who.ID), partyAttribute(p.entity.UID.Type): p.entity.UID}), nil
}

// partyAttribute returns the attribute of the schema's Party for a type of principals.
func partyAttribute(kind types.EntityType) types.String {
	switch kind {
	case typePerson:
		return "person"
	case typeAgent:
		return "agent"
	}
	return "workload"
}
