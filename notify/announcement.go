package notify

import (
	"time"

	"accessbroker.internal/broker"
)

// An announcement is the content of a message about no request, as webhooks receive it.
type announcement struct {
	Event string    `json:"event"`
	Time  time.Time `json:"time"`
	Group string    `json:"group,omitempty"` // whose channel it is
	Title string    `json:"title"`
	Text  string    `json:"text"`
	URL   string    `json:"url"` // of the page, which requires a login
}

// announcementOf returns the content for a notice; false if the notice is about a request.
func announcementOf(pages string, n *broker.Notice) (announcement, bool) {
	return announcement{string(n.Event), n.Created.UTC(), n.Group, plain(n.Title), n.Text, pages + n.Page}, n.Title != ""
}

// content returns what a webhook sends.
func content(pages string, n *broker.Notice, r *broker.Request, now time.Time) (event string, at time.Time, data any) {
	if a, ok := announcementOf(pages, n); ok {
		return a.Event, a.Time, a
	}
	f := factsOf(pages, n, r, now)
	return f.Event, f.Time, f
}

// message returns the subject, the body and the link of a message to people. Operators
// can't change the text of an announcement.
func (t *Templates) message(pages string, n *broker.Notice, r *broker.Request, now time.Time) (subject, body, link string, err error) {
	if a, ok := announcementOf(pages, n); ok {
		return a.Title, a.Text + "\n\n" + a.URL, a.URL, nil
	}
	f := factsOf(pages, n, r, now)
	subject, body, err = t.text(f)
	return subject, body, f.URL, err
}
