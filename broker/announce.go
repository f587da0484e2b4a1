package broker

import "time"

// An Announcement is news about something other than a request, such as an access review.
// Its texts are the broker's own: they contain no text of a requester.
type Announcement struct {
	Event NoticeEvent
	Title string // one line
	Text  string
	Page  string // the path of the page about it, such as "/ui/campaigns"
}

// Announce writes a notice, due now, for every channel of the groups, and for each of the
// people if the rules have a channel for people. Call it in the transaction that makes the
// announcement true.
func Announce(tx Tx, rules *Rules, a Announcement, groups, people []string, now time.Time) {
	notice := Notice{
		Event: a.Event, Title: a.Title, Text: a.Text, Page: a.Page, Created: now, Due: now, Expires: now.Add(noticeLifetime),
	}
	notified := map[string]bool{}
	for _, group := range groups {
		for _, channel := range rules.Groups[group].Notify {
			if notified[channel] {
				continue
			}
			notified[channel] = true
			n := notice
			n.ID, n.Group, n.Channel = NoticeID(newID(now)), group, channel
			tx.Put(&n)
		}
	}
	if !rules.PeopleChannel {
		return
	}
	for _, person := range people {
		if notified["person "+person] {
			continue
		}
		notified["person "+person] = true
		n := notice
		n.ID, n.Person, n.Channel = NoticeID(newID(now)), person, PeopleChannel
		tx.Put(&n)
	}
}
