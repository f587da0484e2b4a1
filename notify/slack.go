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
	"accessbroker.internal/internal/outbound"
)

// A SlackConfig configures a channel in Slack. With a bot token, the broker updates
// its messages when a request is decided. With an incoming webhook, each event is a
// new message.
type SlackConfig struct {
	Pages        string
	Token        string // bot token with the scope chat:write
	Channel      string // channel id, "C0123456789"
	Webhook      string // URL of an incoming webhook, instead of Token and Channel
	API          string // URL of the Web API; empty: Slack's
	AllowPrivate bool   // allow addresses that are not public
	Templates    *Templates
}

type slack struct {
	cfg    SlackConfig
	client *http.Client
}

// NewSlack returns the notifier for a channel in Slack.
func NewSlack(c SlackConfig) (Notifier, error) {
	if (c.Token == "" || c.Channel == "") == (c.Webhook == "") {
		return nil, errors.New("set either a bot token and a channel id, or the URL of an incoming webhook")
	}
	if c.API == "" {
		c.API = "https://slack.com/api"
	}
	if c.Webhook != "" {
		c.API = c.Webhook
	}
	if err := outbound.CheckURL(c.API, c.AllowPrivate); err != nil {
		return nil, err
	}
	return &slack{c, outbound.Client(nil, c.AllowPrivate)}, nil
}

// mrkdwn escapes the characters of links, mentions and entities in Slack.
var mrkdwn = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

// blocks returns the blocks of a message. All texts are plain_text, so that a
// requester's words can't create links or mentions. Only the button has a link.
func blocks(link string, subject, body string) []any {
	plainText := func(s string, most int) map[string]any {
		if runes := []rune(s); len(runes) > most {
			s = string(runes[:most-1]) + "…"
		}
		return map[string]any{"type": "plain_text", "text": s, "emoji": false}
	}
	return []any{
		map[string]any{"type": "header", "text": plainText(subject, 150)},
		map[string]any{"type": "section", "text": plainText(body, 3000)},
		map[string]any{"type": "actions", "elements": []any{map[string]any{"type": "button", "text": plainText("Open", 75), "url": link, "action_id": "look"}}},
	}
}

// Notify posts a message. If the notice reports a decision, it updates all earlier
// messages about the request instead, and posts one only if none of them exists any
// more.
func (s *slack) Notify(ctx context.Context, n *broker.Notice, r *broker.Request, earlier []string, now time.Time) (string, error) {
	subject, body, link, err := s.cfg.Templates.message(s.cfg.Pages, n, r, now)
	if err != nil {
		return "", err
	}
	message := map[string]any{"text": mrkdwn.Replace(subject), "blocks": blocks(link, subject, body), "unfurl_links": false, "unfurl_media": false}
	if s.cfg.Webhook != "" {
		_, err := s.call(ctx, s.cfg.Webhook, message)
		return "", err
	}
	message["channel"] = s.cfg.Channel
	updated := ""
	if isDecision(n.Event) {
		for _, reference := range earlier {
			message["ts"] = reference
			ts, err := s.post(ctx, "/chat.update", message)
			switch {
			case err == nil:
				updated = ts
			case !errors.Is(err, errNoMessage):
				return "", err
			}
		}
	}
	if updated != "" {
		return updated, nil
	}
	delete(message, "ts")
	return s.post(ctx, "/chat.postMessage", message)
}

// errNoMessage means that a message was deleted or is too old to update.
var errNoMessage = errors.New("the message does not exist or can't be updated")

// post calls a method of the Web API that posts or updates a message, and returns
// the reference of the message.
func (s *slack) post(ctx context.Context, method string, message map[string]any) (string, error) {
	answer, err := s.call(ctx, s.cfg.API+method, message)
	if err != nil {
		return "", err
	}
	var result struct {
		OK    bool
		Error string
		TS    string
	}
	if err := json.Unmarshal(answer, &result); err != nil {
		return "", errors.New("the answer of Slack is not JSON")
	}
	switch {
	case result.OK:
	case result.Error == "message_not_found", result.Error == "cant_update_message", result.Error == "edit_window_closed":
		return "", errNoMessage
	default:
		return "", fmt.Errorf("error from Slack: %.64q", result.Error)
	}
	return result.TS, nil
}

// isDecision reports whether an event ends the wait that an earlier one reported.
func isDecision(e broker.NoticeEvent) bool {
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
		return nil, errors.New("the URL is not valid")
	}
	req.Header.Set("Content-Type", "application/json; charset=utf-8")
	if s.cfg.Token != "" {
		req.Header.Set("Authorization", "Bearer "+s.cfg.Token)
	}
	return send(ctx, s.client, req)
}
