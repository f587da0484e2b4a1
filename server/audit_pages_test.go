package server

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

var timelineLine = regexp.MustCompile(`<li><a href="(/ui/audit/\d+)" class="index">\d+</a> .*?<strong>([a-z ]+)</strong>`)

// A timeline has the records of the request and of its leases, and no others. Its
// viewers may read each record.
func TestTimeline(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	ctx, me := t.Context(), w.as(agent)
	r := w.guarded(t, "x")
	w.guarded(t, "of another request")
	voters := map[string]*browser{}
	for _, person := range []string{"login/ben", "login/cleo"} {
		voters[person] = newBrowser(t, w)
		voters[person].logIn(person, "/ui/")
		if status, _, page := voters[person].visit(http.MethodPost, "/ui/requests/"+r.ID, formOf("do", "approve", "digest", r.Digest, "scope.read", "on")); status != http.StatusSeeOther {
			t.Fatalf("%s approves: %d\n%s", person, status, page)
		}
	}
	first := must[*api.Credential](t)(me.Collect(ctx, r.ID))
	second := must[*api.Credential](t)(me.Renew(ctx, first.Lease))
	must[*api.Lease](t)(me.Revoke(ctx, second.Lease, "done with it"))

	ben := voters["login/ben"]
	_, _, page := ben.visit(http.MethodGet, "/ui/requests/"+r.ID+"/log", "")
	var kinds []string
	for _, m := range timelineLine.FindAllStringSubmatch(page, -1) {
		kinds = append(kinds, m[2])
		if status, _, record := ben.visit(http.MethodGet, m[1], ""); status != http.StatusOK || !strings.Contains(record, `<a href="/ui/requests/`+r.ID+`/log">`) {
			t.Errorf("the %s at %s: got %d and no link back\n%s", m[2], m[1], status, record)
		}
	}
	if want := []string{"request created", "approval given", "request approved", "lease issued", "lease issued", "lease revoked"}; !slices.Equal(kinds, want) {
		t.Errorf("the timeline has %q, want %q\n%s", kinds, want, page)
	}
	if n := strings.Count(page, `<span class="id quiet">`+second.Lease+"</span>"); n != 2 {
		t.Errorf("the timeline names the lease %d times, want 2", n)
	}
	if _, _, leases := ben.visit(http.MethodGet, "/ui/leases?all=1", ""); !strings.Contains(leases, "still works until it expires") {
		t.Errorf("the page does not explain the returned lease\n%s", leases)
	}
	stranger := newBrowser(t, w)
	stranger.logIn("login/zoe", "/ui/")
	for _, m := range timelineLine.FindAllStringSubmatch(page, -1) {
		if status, _, _ := stranger.visit(http.MethodGet, m[1], ""); status != http.StatusNotFound {
			t.Errorf("an unrelated person at %s, a %s: got %d", m[1], m[2], status)
		}
	}
}

// writtenLog is a log of records that a test wrote. All are of epoch 1.
type writtenLog struct {
	LogReader
	records []audit.Record
}

func (l *writtenLog) Records(_ context.Context, ids []broker.RecordID) (items []audit.Item, err error) {
	for _, id := range ids {
		record := l.records[id.Index()]
		entry, err := record.Entry()
		if err != nil {
			return nil, err
		}
		entry.SetTime(record.Time)
		items = append(items, audit.Item{Index: id.Index(), Leaf: entry.Leaf()})
	}
	return items, nil
}

// A timeline finds all records, however far apart they are in the log.
func TestTimelineFindsRecords(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)
	at := func(seconds int) time.Time { return begin.Add(time.Duration(seconds) * time.Second) }
	request := &audit.RequestFacts{ID: broker.NewRequestID(begin).String()}
	lease := &audit.LeaseFacts{ID: broker.NewLeaseID(at(2400)).String()}
	its := []audit.Record{
		{Kind: audit.RequestCreated, Time: at(0), Request: request},
		{Kind: audit.RequestApproved, Time: at(1200), Request: request},
		{Kind: audit.CollectRefused, Time: at(1800), Request: request},
		{Kind: audit.LeaseOpened, Time: at(2400), Request: request, Lease: lease},
		{Kind: audit.LeaseIssued, Time: at(2410), Lease: lease},
		{Kind: audit.LeaseRevoking, Time: at(4000), Lease: lease},
		{Kind: audit.LeaseRevoked, Time: at(4400), Lease: lease},
	}
	others := func(every time.Duration) (list []audit.Record) {
		for t := begin.Add(-time.Hour); t.Before(at(9000)); t = t.Add(every) {
			list = append(list, audit.Record{Kind: audit.LeaseIssued, Time: t, Lease: &audit.LeaseFacts{ID: "lse_other"}})
		}
		return list
	}
	for name, others := range map[string][]audit.Record{
		"alone":            nil,
		"in a quiet log":   others(time.Minute),
		"in a busy log":    others(500 * time.Millisecond),
		"in one with gaps": slices.Concat(others(time.Minute), slices.Repeat([]audit.Record{{Kind: audit.SessionOpened, Time: at(3000)}}, 5000)),
	} {
		t.Run(name, func(t *testing.T) {
			log := &writtenLog{records: slices.Concat(its, others)}
			slices.SortStableFunc(log.records, func(a, b audit.Record) int { return a.Time.Compare(b.Time) })
			var ids []broker.RecordID
			for i, r := range log.records {
				if r.Request == request || r.Lease == lease {
					ids = append(ids, broker.NewRecordID(1, int64(i)))
				}
			}
			found, err := (&Server{cfg: Config{Log: log}}).read(t.Context(), ids)
			if err != nil {
				t.Fatal(err)
			}
			var got, want []string
			for _, f := range found {
				got = append(got, fmt.Sprint(f.record.Kind, f.record.Time))
			}
			for _, one := range its {
				want = append(want, fmt.Sprint(one.Kind, one.Time))
			}
			if !slices.Equal(got, want) {
				t.Errorf("found %q\nwant %q", got, want)
			}
		})
	}
}

// Timelines show a verdict in the same way for new logs and for logs that predate
// signed reviews.
func TestTimelineVerdicts(t *testing.T) {
	t.Parallel()
	for said, want := range map[string]string{"justified": "justified", "unjustified": "unjustified", "approve": "justified", "deny": "unjustified"} {
		for _, kind := range []audit.Kind{audit.ReviewGiven, audit.ReviewClosed} {
			found := foundRecord{record: audit.Record{Kind: kind, Approval: &audit.ApprovalFacts{Decision: said}}}
			if got := found.entry(0).Detail; got != want {
				t.Errorf("%s of %q shows %q", kind, said, got)
			}
		}
	}
}
