package server

import (
	"context"
	"fmt"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/server/ui"
)

// The timeline of a request as a drawing: how long it waited, what was granted, when its
// credentials were alive, and when all ended.

// maxDrawn is how many credentials a timeline draws.
const maxDrawn = 6

// axisOf draws the timeline of a request with its leases, newest first.
func (s *Server) axisOf(ctx context.Context, r *broker.Request, leases []*broker.Lease, now time.Time) (*ui.Axis, error) {
	settled, err := s.settled(ctx, r, now)
	if err != nil {
		return nil, err
	}
	a := &ui.Axis{Begin: r.Created, Now: now}
	a.Rows = append(a.Rows, waitedRow(r, settled, now))
	over := settled
	if r.Status == broker.RequestApproved {
		a.Rows = append(a.Rows, grantedRow(r, now))
		over = r.CollectUntil
	}
	drawn := leases[:min(len(leases), maxDrawn)]
	for i := len(drawn) - 1; i >= 0; i-- {
		row, end := credentialRow(drawn[i], now)
		a.Rows = append(a.Rows, row)
		over = later(over, end)
	}
	if more := len(leases) - len(drawn); more > 0 {
		a.Rows[len(a.Rows)-len(drawn)].Text += fmt.Sprintf(" (and %d earlier)", more)
	}
	a.Rows = append(a.Rows, endRow(r, over, now))
	a.End = later(over, r.Created.Add(time.Second))
	return a, nil
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// settled returns when the request stopped waiting, or will at the latest. The row has no
// time of a withdrawal or of a revocation; the record of it has.
func (s *Server) settled(ctx context.Context, r *broker.Request, now time.Time) (time.Time, error) {
	switch r.State(now) {
	case broker.RequestPending, broker.RequestLapsed:
		return r.Lapses, nil
	case broker.RequestApproved, broker.RequestEnded:
		return r.Approved, nil
	}
	if n := len(r.Approvals); n > 0 && r.Status == broker.RequestDenied && !r.Approvals[n-1].Approve {
		return r.Approvals[n-1].At, nil
	}
	if r.DeniedBy == broker.DeniedByPolicy || r.DeniedBy == broker.DeniedByCeiling || len(r.Records) == 0 {
		return r.Created, nil
	}
	found, err := s.read(ctx, r.Records[len(r.Records)-1:])
	if err != nil || len(found) == 0 {
		return r.Created, err
	}
	return found[0].record.Time, nil
}

func waitedRow(r *broker.Request, settled, now time.Time) ui.AxisRow {
	row := ui.AxisRow{Bars: []ui.AxisBar{{Kind: "waited", From: r.Created, To: settled}}}
	waited := span(r.Created, settled)
	switch r.State(now) {
	case broker.RequestPending:
		row.Text = "waiting for approval, lapses at " + onAxis(settled, r.Created)
	case broker.RequestLapsed:
		row.Text = "waited " + waited + ", lapsed"
	case broker.RequestDenied:
		row.Text = "waited " + waited + ", denied"
	case broker.RequestWithdrawn:
		row.Text = "waited " + waited + ", withdrawn"
	default:
		row.Text = "waited " + waited + ", approved"
		if !settled.After(r.Created) {
			row.Text = "needed no approval"
		}
	}
	return row
}

func grantedRow(r *broker.Request, now time.Time) ui.AxisRow {
	row := ui.AxisRow{Bars: []ui.AxisBar{{Kind: "granted", From: r.Starts(), To: r.CollectUntil}}}
	switch {
	case now.Before(r.Starts()):
		row.Text = "collectable from " + onAxis(r.Starts(), r.Created) + " to " + onAxis(r.CollectUntil, r.Created)
	case now.Before(r.CollectUntil):
		row.Text = "granted, collectable until " + onAxis(r.CollectUntil, r.Created)
	default:
		row.Text = "granted, was collectable for " + span(r.Starts(), r.CollectUntil)
	}
	return row
}

// credentialRow returns the row of a lease, and when its credential stops working.
func credentialRow(l *broker.Lease, now time.Time) (row ui.AxisRow, end time.Time) {
	alive := func(to time.Time) []ui.AxisBar { return []ui.AxisBar{{Kind: "alive", From: l.Opened, To: to}} }
	end = l.Expires
	row.Bars = alive(end)
	switch l.State(now) {
	case broker.LeaseIssuing:
		row.Text = "credential is being issued"
	case broker.LeaseActive:
		row.Text = "credential is valid until " + onAxis(end, l.Opened)
	case broker.LeaseRevoking, broker.LeaseStuck:
		row.Text = "credential is being revoked"
	case broker.LeaseExpired:
		row.Text = "credential was valid for " + span(l.Opened, end) + ", expired"
	case broker.LeaseFailed:
		end = later(l.Opened, l.Ended)
		row.Text, row.Bars = "no credential was issued", []ui.AxisBar{{Kind: "ended", From: end, To: end}}
	case broker.LeaseAbandoned:
		row.Text = "credential abandoned, may work until it expires"
	default:
		ended := later(l.Opened, l.Ended)
		row.Text, row.Bars = "credential was valid for "+span(l.Opened, ended)+", revoked", alive(ended)
		if end = ended; l.WorksUntil().After(ended) {
			end = l.WorksUntil()
			row.Text = "credential ended, but works until " + onAxis(end, l.Opened)
			row.Bars = append(row.Bars, ui.AxisBar{Kind: "lingering", From: ended, To: end})
		}
	}
	return row, end
}

func endRow(r *broker.Request, over, now time.Time) ui.AxisRow {
	row := ui.AxisRow{Text: "ended at " + onAxis(over, r.Created), Bars: []ui.AxisBar{{Kind: "ended", From: over, To: over}}}
	if now.Before(over) {
		row.Text = "ends by " + onAxis(over, r.Created)
	}
	return row
}

// onAxis formats a time in UTC, with its date if it is not the day of from.
func onAxis(t, from time.Time) string {
	if t, from = t.UTC(), from.UTC(); t.Format(time.DateOnly) == from.Format(time.DateOnly) {
		return t.Format("15:04:05")
	}
	return t.Format("Jan 2 15:04:05")
}

// span formats how long something lasted.
func span(from, to time.Time) string {
	d := to.Sub(from)
	if d < time.Second {
		return "less than 1s"
	}
	return broker.FormatDuration(d.Truncate(time.Second))
}
