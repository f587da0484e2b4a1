package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"accessbroker.internal/broker"
)

// A SlackConfig is a channel of Slack: by a bot's token, and then messages are
// updated when a request is decided; or by an incoming webhook, and then each
// event is a message of its own.
type SlackConfig struct {
	Pages        string
	Token        string // of a bot with chat:write
	Channel      string // its id, "C0123456789"
	Webhook      string // URL of an incoming webhook, instead of both
	API          string // URL of another API than Slack's; empty: Slack's
	AllowPrivate bool   // addresses that are not of the internet
	Templates    *Templates
}

type slack struct {
	cfg    SlackConfig
	client *http.Client
}

// NewSlack makes a channel of Slack.
func NewSlack(c SlackConfig) (Notifier, error) {
	if (c.Token == "" || c.Channel == "") == (c.Webhook == "") {
		return nil, errors.New("give a bot's token and a channel's id, or the URL of an incoming webhook")
	}
	if c.API == "" {
		c.API = "https://slack.com/api"
	}
	if c.Webhook != "" {
		c.API = c.Webhook
	}
	if err := checkURL(c.API, c.AllowPrivate); err != nil {
		return nil, err
	}
	return &slack{c, newClient(nil, c.AllowPrivate)}, nil
}

// mrkdwn escapes what Slack reads as links, mentions and entities.
var mrkdwn = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

// block is a piece of a message. Texts are plain, so that nobody's words make
// links or mention people; only the button leads somewhere.
func blocks(f Facts, subject, body string) []any {
	plainText := func(s string, most int) map[string]any {
		if runes := []rune(s); len(runes) > most {
			s = string(runes[:most-1]) + "…"
		}
		return map[string]any{"type": "plain_text", "text": s, "emoji": false}
	}
	return []any{
		map[string]any{"type": "header", "text": plainText(subject, 150)},
		map[string]any{"type": "section", "text": plainText(body, 3000)},
		map[string]any{"type": "actions", "elements": []any{map[string]any{"type": "button", "text": plainText("Look at it", 75), "url": f.URL, "action_id": "look"}}},
	}
}

// Notify writes a message, or changes all earlier ones of the same request if it
// settles what they asked for. One that was deleted is passed over.
func (s *slack) Notify(ctx context.Context, n *broker.Notice, r *broker.Request, earlier []string, now time.Time) (string, error) {
	f := factsOf(s.cfg.Pages, n, r, now)
	subject, body, err := s.cfg.Templates.text(f)
	if err != nil {
		return "", err
	}
	message := map[string]any{"text": mrkdwn.Replace(subject), "blocks": blocks(f, subject, body), "unfurl_links": false, "unfurl_media": false}
	if s.cfg.Webhook != "" {
		_, err := s.call(ctx, s.cfg.Webhook, message)
		return "", err
	}
	message["channel"] = s.cfg.Channel
	changed := ""
	if settles(n.Event) {
		for _, reference := range earlier {
			message["ts"] = reference
			ts, err := s.post(ctx, "/chat.update", message)
			switch {
			case err == nil:
				changed = ts
			case !errors.Is(err, errNoMessage):
				return "", err
			}
		}
	}
	if changed != "" {
		return changed, nil
	}
	delete(message, "ts")
	return s.post(ctx, "/chat.postMessage", message)
}

// errNoMessage says that there is no such message any more, or that it is too
// old to be changed.
var errNoMessage = errors.New("its API knows no such message")

// post calls a method of the API that has to do with one message, and gives the
// message's reference.
func (s *slack) post(ctx context.Context, method string, message map[string]any) (string, error) {
	answer, err := s.call(ctx, s.cfg.API+method, message)
	if err != nil {
		return "", err
	}
	var said struct {
		OK    bool
		Error string
		TS    string
	}
	if err := json.Unmarshal(answer, &said); err != nil {
		return "", errors.New("its answer is not JSON")
	}
	switch {
	case said.OK:
	case said.Error == "message_not_found", said.Error == "cant_update_message", said.Error == "edit_window_closed":
		return "", errNoMessage
	default:
		return "", fmt.Errorf("its API says %.64q", said.Error)
	}
	return said.TS, nil
}

// settles says whether an event ends what an earlier one asked for.
func settles(e broker.NoticeEvent) bool {
	switch e {
	case broker.NoticeApproved, broker.NoticeDenied, broker.NoticeWithdrawn, broker.NoticeReviewed:
		return true
	}
	return false
}

func (s *slack) call(ctx context.Context, url string, message any) ([]byte, error) {
	body, err := json.Marshal(message)
	if err != nil {
		return nil, fmt.Errorf("encoding a message: %w", err)
	}
	req, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, errors.New("its URL is not valid")
	}
	req.Header.Set("Content-Type", "application/json; charset=utf-8")
	if s.cfg.Token != "" {
		req.Header.Set("Authorization", "Bearer "+s.cfg.Token)
	}
	return send(ctx, s.client, req)
}
