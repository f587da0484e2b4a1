package notify_test

import (
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/notify"
)

func TestAnnouncementsReachGroupsAndPeople(t *testing.T) {
	group, person := &receiver{}, &receiver{}
	q := newQueue(t, map[string]notify.Notifier{"slack:dba": group, broker.PeopleChannel: person})
	rules := &broker.Rules{Groups: map[string]broker.Group{"dba": {Notify: []string{"slack:dba"}}, "ops": {Notify: []string{"slack:dba"}}}, PeopleChannel: true}
	a := broker.Announcement{Event: broker.NoticeReviewStarted, Title: "Access review", Text: "3 items wait.", Page: "/ui/campaigns"}
	q.update(func(tx broker.Tx) {
		tx.Put(&broker.Account{Person: "login/ana", Email: "ana@acme.test"})
		broker.Announce(tx, rules, a, []string{"dba", "ops"}, []string{"login/ana", "login/ana"}, noon)
	})
	q.deliver(noon.Add(time.Second))
	if group.count() != 1 || person.count() != 1 {
		t.Fatalf("got %d messages to the channel and %d to the person, want one each", group.count(), person.count())
	}
	if n := group.calls[0]; n.Title != a.Title || n.Text != a.Text || n.Page != a.Page || n.Group != "dba" {
		t.Errorf("the channel got %+v", n)
	}
	if n := person.calls[0]; n.Address != "ana@acme.test" {
		t.Errorf("the person got a message at %q", n.Address)
	}
}
