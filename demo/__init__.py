"""The main job, shown: eight mailboxes train one spam filter over HTTP, without and with privacy."""
