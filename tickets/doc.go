// Package tickets asks ticket systems about tickets: their state, their assignee and their
// change window.
//
//	tracker.go      a Tracker: which tickets it has, and what its words mean here
//	client.go       calls: one host of the operator's file, bounded answers, no redirects
//	jira.go, servicenow.go, github.go, generic.go    what each kind of system answers
//	watcher.go      looks at tickets for requests and collections
//	poll.go         looks at them while access rests on them
//	line.go         bounds the calls to one tracker
//	hook.go         webhooks, which are only hints to look
//
// What a tracker answers is outside text. A ticket's id enters a call only as one escaped
// part of an address that the operator chose.
package tickets
