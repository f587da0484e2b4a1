package store

import (
	"context"
	"net"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"accessbroker.internal/broker"
)

// A tripConn counts round trips: it writes after it has read.
type tripConn struct {
	net.Conn
	trips *atomic.Int64
	wrote atomic.Bool
}

func (c *tripConn) Write(b []byte) (int, error) {
	if !c.wrote.Swap(true) {
		c.trips.Add(1)
	}
	return c.Conn.Write(b)
}

func (c *tripConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.wrote.Store(false)
	}
	return n, err
}

// A group locks the head, reads its rows and writes in at most four round trips, also if it
// has to follow another replica's commit.
func TestGroupTakesFewRoundTrips(t *testing.T) {
	list := replicas(t, 2)
	s := list[0]
	e := s.w.engine.(*postgresEngine)
	var trips atomic.Int64
	settings := e.cfg.settings
	e.cfg.settings = func() (*pgx.ConnConfig, error) {
		c, err := settings()
		if err != nil {
			return nil, err
		}
		dial := c.DialFunc
		c.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dial(ctx, network, address)
			return &tripConn{Conn: conn, trips: &trips}, err
		}
		return c, nil
	}
	_ = s.w.close() // the next group connects
	group := func() {
		var members []*member
		for n := range 8 {
			i := newIssuance(t, n)
			m := filing(&i)
			m.reads = append(i.blocks(), i.request.ID, broker.CounterKey{Policy: "limit p", Holder: i.lease.Holder})
			members = append(members, m)
		}
		together(t, s, members...)
	}
	for range 8 { // until every statement is prepared
		group()
	}
	const groups = 16
	trips.Store(0)
	for range groups {
		group()
	}
	alone := trips.Swap(0)
	for range groups {
		i := newIssuance(t, 1)
		if err := i.store(t.Context(), list[1]); err != nil {
			t.Fatal(err)
		}
		group()
	}
	behind := trips.Load()
	t.Logf("%d groups took %d round trips, and %d behind another replica", groups, alone, behind)
	if alone == 0 || alone > 3*groups || behind > 4*groups {
		t.Errorf("%d groups took %d round trips, want at most 3 each; and %d behind another replica, want at most 4 each", groups, alone, behind)
	}
}
