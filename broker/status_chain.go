package broker

import (
	"context"
	"fmt"
	"time"
)

// severedPlaces are the places of tokens whose own leases have not ended yet, although a token
// in their chain has: an end reaches what rests on it within moments. An introspection follows
// the chain (see chainHolds); a list must not be later.
type severedPlaces struct{ places []uint32 }

// maxSevered bounds the ends that are being worked off while a list is made.
const maxSevered = 4096

// severed returns the places of a list that are severed; nil: none, which is the usual case.
func (s *StatusLists) severed(ctx context.Context, list *StatusList, now time.Time) (found *severedPlaces, err error) {
	err = s.b.cfg.Store.View(ctx, func(tx Tx) error {
		ending, err := tx.Standings(StandingQuery{Due: true, Now: now, Limit: maxSevered})
		if err != nil {
			return err
		}
		if len(ending) == maxSevered {
			return fmt.Errorf("%w: too many ends are being worked off", ErrUnavailable)
		}
		for _, link := range ending {
			if link.Kind != FactLease || !link.Ending {
				continue
			}
			places, err := severedBy(tx, link, list, now)
			if err != nil {
				return err
			}
			if len(places) > 0 && found == nil {
				found = &severedPlaces{}
			}
			if found != nil {
				found.places = append(found.places, places...)
			}
		}
		return nil
	})
	return found, Unavailable(err)
}

// severedBy returns the places of the leases that rest on a token that has ended.
func severedBy(tx Tx, link *Standing, list *StatusList, now time.Time) (places []uint32, err error) {
	requests := RequestQuery{RestsOn: link.StandingKey, Now: now, Limit: endsPage}
	for {
		page, next, err := tx.Requests(requests)
		if err != nil {
			return nil, err
		}
		for _, r := range page {
			more, err := livePlaces(tx, r.ID, list, now)
			if err != nil {
				return nil, err
			}
			places = append(places, more...)
		}
		if requests.Before = next; next.IsZero() {
			return places, nil
		}
	}
}

func livePlaces(tx Tx, request RequestID, list *StatusList, now time.Time) (places []uint32, err error) {
	leases := LeaseQuery{Request: request, Live: true, Now: now, Limit: endsPage}
	for {
		page, next, err := tx.Leases(leases)
		if err != nil {
			return nil, err
		}
		for _, l := range page {
			if l.Listed.List == list.ID {
				places = append(places, l.Listed.Index)
			}
		}
		if leases.Before = next; next.IsZero() {
			return places, nil
		}
	}
}
