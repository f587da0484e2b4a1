package store

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/storetest"
)

func notice(n byte, channel string, event broker.NoticeEvent, due time.Time) *broker.Notice {
	return &broker.Notice{ID: broker.NoticeID{n}, Channel: channel, Event: event, Due: due, Requester: "spiffe://acme.test/a"}
}

// noticeIDs returns the first bytes of the ids that a query finds.
func noticeIDs(t *testing.T, s *Store, q broker.NoticeQuery) (ids []byte) {
	t.Helper()
	err := s.View(t.Context(), func(tx broker.Tx) error {
		list, err := tx.Notices(q)
		for _, n := range list {
			ids = append(ids, n.ID[0])
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func checkNotices(t *testing.T, s *Store) {
	t.Helper()
	for name, test := range map[string]struct {
		query broker.NoticeQuery
		want  []byte
	}{
		"urgent":                 {broker.NoticeQuery{Channel: "slack:dba", Urgent: true}, []byte{4}},
		"others, earliest first": {broker.NoticeQuery{Channel: "slack:dba"}, []byte{2, 1}},
		"another channel":        {broker.NoticeQuery{Channel: "mail:dba"}, []byte{5}},
		"delivered":              {broker.NoticeQuery{Channel: "mail:told"}, nil},
		"one requester":          {broker.NoticeQuery{Channel: "slack:dba", Requester: "spiffe://acme.test/a"}, []byte{1, 2, 3}},
		"another requester":      {broker.NoticeQuery{Channel: "slack:dba", Requester: "spiffe://acme.test/b"}, nil},
	} {
		test.query.Now, test.query.Limit = testNow, 10
		if got := noticeIDs(t, s, test.query); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, not %v", name, got, test.want)
		}
	}
	err := s.View(t.Context(), func(tx broker.Tx) error {
		channels, err := tx.NoticeChannels()
		if err != nil || !slices.Equal(channels, []string{"mail:dba", "slack:dba"}) {
			t.Errorf("channels %q, %v", channels, err)
		}
		for most, want := range map[int][]broker.Backlog{2: {{Channel: "slack:dba", Requester: "spiffe://acme.test/a"}}, 3: nil} {
			if got, err := tx.Backlogs(most, 10); err != nil || !slices.Equal(got, want) {
				t.Errorf("more than %d: %v, %v", most, got, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func putNotices(t *testing.T, s *Store) {
	t.Helper()
	put(t, s,
		notice(1, "slack:dba", broker.NoticePending, testNow), notice(2, "slack:dba", broker.NoticeWithdrawn, testNow.Add(-time.Second)),
		notice(3, "slack:dba", broker.NoticeEscalated, testNow.Add(time.Second)), notice(4, "slack:dba", broker.NoticeBreakGlass, testNow),
		notice(5, "mail:dba", broker.NoticePending, testNow), notice(6, "mail:told", broker.NoticePending, time.Time{}))
}

func TestNotices(t *testing.T) {
	s := newStore(t)
	putNotices(t, s)
	checkNotices(t, s)
}

// Notices that an earlier version left undelivered are found by the columns that
// it did not have.
func TestNoticesOfEarlierVersions(t *testing.T) {
	storetest.OnlySQLite(t, "databases from before PostgreSQL")
	path := filepath.Join(t.TempDir(), "broker.db")
	s, err := Open(t.Context(), Config{URL: testURL(t, path), Reserve: 1 << 16})
	if err != nil {
		t.Fatal(err)
	}
	putNotices(t, s)
	setBack(t, s, 4)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(t.Context(), Config{URL: testURL(t, path), Reserve: 1 << 16}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	checkNotices(t, s)
}
